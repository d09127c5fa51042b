"""Every flag of every script, once: a typed field, its default and one sentence; the scripts' --help is made of this.

Lengths are counted in tokens unless a sentence says words; a step is one micro-batch, counted from 0 in each epoch.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from src.config.constants import BLEU_TOKENIZERS, CORPORA, CTRANSLATE2_TYPES, GENERATION_TYPES, LOWER_IS_BETTER, METRICS
from src.config.errors import UserError
from src.config.parsing import check_value, shown

REPOSITORY = Path(__file__).resolve().parents[2]
DEBUG_ROWS = 128
EXPERIMENTS = "arg_configs/kd_experiment_configs.yaml"
ALIGNMENTS = ("edit", "exact")
API_FORMS = ("published", "chat", "jsonl")
FAMILIES = ("t5", "bart", "gpt2", "opt", "llama")
ONLY_NEW_MODELS = {
    "family", "d_model", "d_ff", "n_heads", "dropout", "max_position_embeddings",
    "vocab_size", "tokenizer", "dataset_path",
}  # fmt: skip

PATHS = ("_dir", "_path", "_name", "tokenizer", "from_model")  # how flags end that may name a file or folder
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, as common file systems have it

REQUIRED = MISSING
# The headings of --help, in the order in which they are shown.
FILES, MODEL, DATA, TRAINING = "files", "models", "data", "training"
EVALUATION, DECODING, RUN = "evaluation and checkpoints", "decoding", "the run"
GROUPS = (FILES, MODEL, DATA, TRAINING, EVALUATION, DECODING, RUN)

SPECIAL_TOKENS = (
    "Read special tokens that texts name (`</s>`, `<pad>`; a chat template writes some) as those tokens; "
    "False: as text."
)
SOURCE_LANGUAGE = (
    "Language of the inputs, for a multilingual model, as its tokenizer names it (en_XX, en, eng_Latn, ...); empty: "
    "the one that the model folder was saved with."
)
TARGET_LANGUAGE = "Language of the targets, likewise; labels and what is generated begin with its token."
TASK_PROMPT = (
    "Prefix of the input for encoder-decoder models (a space is added if missing), suffix for decoder-only models, to "
    r"the letter (with `\n` and `\t`; a space is added where nothing separates it); the value `bart` means none."
)

DISTILL_PROMPT = "summarize: "

GENERATION_TYPE = "How to decode: _short and _long set the length penalty, _low and _high the temperature."


def check_path(value: str, where: str) -> None:
    """Refuse what no file system takes for a path, which would end in an OSError wherever it is looked at first."""
    if any(len(part.encode()) > LONGEST_NAME for part in Path(value).parts) or len(value.encode()) > LONGEST_PATH:
        raise UserError(f"{where}: {shown(value)}: a path's names may not be longer than {LONGEST_NAME} bytes each")


def flag(
    default: Any,
    sentence: str,
    group: str,
    *,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
) -> Any:
    """A dataclass field that is a flag: its default (or REQUIRED), its sentence in --help, what values are allowed."""
    limits = {"choices": choices, "minimum": minimum, "maximum": maximum, "above": above}
    return field(default=default, metadata={"sentence": sentence, "group": group, "limits": limits})


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What all scripts' arguments have in common: they are checked when they are made."""

    script: ClassVar[str]

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            check_value(value, each.metadata["limits"], f"--{each.name}")
            if value == "" and each.default is REQUIRED:
                raise UserError(f"--{each.name}: must not be empty")
            if isinstance(value, str) and each.name.endswith(PATHS):
                check_path(value, f"--{each.name}")
        self.check()

    def check(self) -> None:
        """Raise a UserError if flags contradict each other; subclasses add to it."""

    @classmethod
    def answered(cls, given: dict[str, Any]) -> bool:
        """Whether the flags given only ask something, which has then been printed: no other flag is needed."""
        return False


@dataclass(frozen=True, kw_only=True)
class SharedArguments(Arguments):
    """The flags of ft_main.py, gen_main.py, kd_main.py and kd_dataset_with_logits_main.py."""

    output_dir: str = flag(REQUIRED, "Folder of everything this run writes; made if it does not exist.", FILES)
    dataset_path: str = flag(
        REQUIRED,
        "The data: a JSON file of splits, a folder of JSON Lines, Parquet, CSV or TSV files per split, or hf:<name>.",
        FILES,
    )
    checkpoint_path: str | None = flag(
        None, "Folder of a state to resume from, or weights (.pt, .safetensors, model folder) to start with.", FILES
    )
    max_input_length: int = flag(
        512, "Tokens an input may have, its prompt included; the prompt is never cut.", DATA, minimum=1
    )
    max_labels_length: int = flag(
        128, "Tokens the labels may have, and the most new tokens that are generated.", DATA, minimum=1
    )
    task_prompt: str = flag("", TASK_PROMPT, DATA)
    truncation_side: str = flag(
        "right", "Where an input too long is cut: at its end or at its beginning.", DATA, choices=("right", "left")
    )
    special_tokens_in_text: bool = flag(False, SPECIAL_TOKENS, DATA)
    source_language: str = flag("", SOURCE_LANGUAGE, DATA)
    target_language: str = flag("", TARGET_LANGUAGE, DATA)
    mixed_precision: str = flag(
        "no", "Number format of the forward passes; `no` is float32.", RUN, choices=("no", "fp16", "bf16")
    )
    num_beams: int = flag(4, "Beams of beam search; plain sampling has no beams.", DECODING, minimum=1)
    model_generation_settings: bool = flag(
        True,
        "Write with the model's own settings (no_repeat_ngram_size, min_length, length_penalty, ...) where no flag "
        "says otherwise; False leaves them out.",
        DECODING,
    )
    batch_size: int = flag(
        32, "Rows of one update when training; rows of one batch when only generating.", DATA, minimum=1
    )
    seed: int = flag(
        42,
        "Seed of every random choice; the same seed and flags give the same results.",
        RUN,
        minimum=0,
        maximum=2**32 - 1,
    )
    debug: bool = flag(False, f"Use at most {DEBUG_ROWS} rows of every split, to try a command out.", RUN)
    resume: bool = flag(True, "Continue where an interrupted run in output_dir stopped.", RUN)
    overwrite: bool = flag(False, "Start anew, and replace what an earlier run left in output_dir.", RUN)
    dry_run: bool = flag(
        False,
        "Check everything, load the models and time a few steps; print what the run would do and take, write nothing.",
        RUN,
    )

    @property
    def max_rows(self) -> int | None:
        """Rows of each split to read; None: all."""
        return DEBUG_ROWS if self.debug else None


@dataclass(frozen=True, kw_only=True)
class TrainingArguments(SharedArguments):
    """The flags of the three scripts that train: ft_main.py, kd_main.py and kd_dataset_with_logits_main.py."""

    compile: bool = flag(
        False,
        "Compile the models' layers: a minute or more at the start, faster steps after. Not for experiments that "
        "compare hidden states or attention.",
        RUN,
    )
    max_gpu_batch_size: int = flag(
        8,
        "Rows of one micro-batch on each device; batch_size must be a multiple of it, or smaller.",
        TRAINING,
        minimum=1,
    )
    learning_rate: float = flag(1e-5, "Peak learning rate, after the linear warm-up.", TRAINING, above=0)
    optimizer_eps: float = flag(1e-8, "Epsilon of AdamW.", TRAINING, above=0)
    weight_decay: float = flag(1e-5, "Weight decay of AdamW.", TRAINING, minimum=0)
    clip_grad_norm: float | None = flag(
        None,
        "Clip the gradient norm to this value; None: no clipping.",
        TRAINING,
        above=0,
    )
    several_references: str = flag(
        "all",
        "What is learned of an input whose target is a list of references: all, a row for each; first, the first.",
        DATA,
        choices=("all", "first"),
    )
    epochs: int = flag(20, "Epochs over which the learning rate decays, and that are run.", TRAINING, minimum=1)
    n_patience_epochs: int | None = flag(
        None, "Stop after this many epochs without a better score on dev; None: never.", TRAINING, minimum=1
    )
    do_train: bool = flag(True, "False: train nothing, only score the model on test.", TRAINING)
    metrics: tuple[str, ...] | None = flag(
        None,
        "Scores to compute besides metric_for_best_model; `all` is every one that is installed.",
        EVALUATION,
        choices=(*METRICS, "all"),
    )
    metric_for_best_model: str = flag(
        "rouge2_f", "Score on dev that chooses the best checkpoint, for example sacrebleu or nll.", EVALUATION
    )
    bleu_tokenize: str = flag(
        "13a",
        "sacreBLEU's tokenizer: 13a, intl (languages with spaces), zh, ja-mecab, ko-mecab, or char, flores200 (any).",
        EVALUATION,
        choices=BLEU_TOKENIZERS,
    )
    greater_is_better: bool | None = flag(
        None, "Follows from metric_for_best_model; a value that contradicts it is refused.", EVALUATION
    )
    save_checkpoint_every_n_steps: float = flag(
        0.55,
        "Steps between evaluations on dev, or a share of an epoch if at most 1; each epoch's end is one more.",
        EVALUATION,
        above=0,
    )
    test_every_n_epochs: int | None = flag(
        None, "Epochs between scores on test; None: only the best checkpoint, at the end.", EVALUATION, minimum=1
    )
    keep_checkpoint_after_test: bool = flag(
        False, "True keeps the best checkpoint's folder (with optimizer); False only its weights.", EVALUATION
    )
    save_state_every_n_minutes: float = flag(
        15.0, "Minutes between resumable states, besides the one written at every evaluation.", EVALUATION, above=0
    )

    @property
    def metric_options(self) -> dict[str, dict[str, str]]:
        """By metric, what the flags say of it."""
        return {"sacrebleu": {"tokenize": self.bleu_tokenize}}

    @property
    def higher_is_better(self) -> bool:
        """The direction of metric_for_best_model."""
        return self.metric_for_best_model not in LOWER_IS_BETTER

    @property
    def micro_batch_size(self) -> int:
        """Rows of one micro-batch on each device."""
        return min(self.batch_size, self.max_gpu_batch_size)

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of one update."""
        return self.batch_size // self.micro_batch_size

    def check(self) -> None:
        super().check()
        if self.batch_size % self.micro_batch_size:
            fits = max(size for size in range(1, self.max_gpu_batch_size) if self.batch_size % size == 0)
            raise UserError(
                f"--batch_size {self.batch_size} is not a multiple of --max_gpu_batch_size {self.max_gpu_batch_size}; "
                f"--max_gpu_batch_size {fits} would fit"
            )
        if self.greater_is_better not in (None, self.higher_is_better):
            direction = "higher" if self.higher_is_better else "lower"
            raise UserError(
                f"--greater_is_better {self.greater_is_better}: a {direction} {self.metric_for_best_model} is better; "
                "leave the flag out"
            )
        steps = self.save_checkpoint_every_n_steps
        if steps > 1 and not steps.is_integer():
            raise UserError(
                f"--save_checkpoint_every_n_steps: {steps} is neither an integer number of steps "
                "nor a share of an epoch (at most 1)"
            )


@dataclass(frozen=True, kw_only=True)
class FineTuneArguments(TrainingArguments):
    r"""Fine-tune a model on the labeled data, usually the teacher.

    Reads   a dataset file (splits train, dev, test) and a pretrained model.
    Writes  into output_dir: eval_scores.csv, eval_generations.json, the best checkpoint, a portable model folder
            `model` that every --model_name and --teacher_name opens, and run.json.

    Example:
      python ft_main.py --model_name t5-large --task_prompt modern: --max_input_length 48 --max_labels_length 48 \
        --metrics all --metric_for_best_model sacrebleu --epochs 15 --learning_rate 5e-05 --batch_size 96 \
        --dataset_path datasets/original/shakespeare_7k.json --output_dir outputs/shakespeare_7k/t5/ft_teacher
    """

    script: ClassVar[str] = "ft_main.py"

    model_name: str = flag("t5-large", "Hub name or folder of the model, NAME_prune... for fewer layers.", MODEL)


def _experiment_file(written: str) -> Path:
    """The experiments' YAML; the default lies in the repository wherever the script is started."""
    return REPOSITORY / written if written == EXPERIMENTS else Path(written)


@dataclass(frozen=True, kw_only=True)
class DistillStoredArguments(TrainingArguments):
    r"""Distill a teacher whose log-probabilities are stored in the dataset file, for example an API's.

    Reads   a dataset file of prepare_datasets_main.py --logits_dataset_path (train_0 ... with tokens and logits), and
            the experiments' YAML.
    Writes  into output_dir: eval_scores.csv, eval_generations.json, the best checkpoint, a portable model folder
            `model`, and run.json.

    Example:
      python kd_dataset_with_logits_main.py --experiment_config_key logits_kd --student_name t5-small \
        --task_prompt modern: --max_input_length 48 --max_labels_length 48 --metric_for_best_model sacrebleu \
        --epochs 192 --stop_training_after_n_epochs 96 --ft_steps_at_end 10 --learning_rate 0.003 \
        --dataset_path datasets/with_logits/shakespeare_7k/1.json --output_dir outputs/shakespeare_7k/t5/logits
    """

    script: ClassVar[str] = "kd_dataset_with_logits_main.py"

    task_prompt: str | None = flag(  # type: ignore[assignment]  # the stages replace None at once
        None, f"{TASK_PROMPT} None: the teacher's own if its folder knows it, else `{DISTILL_PROMPT}`.", DATA
    )
    experiment_config_key: str = flag(
        REQUIRED, "Which experiment of the YAML to run: finetuning, logits_kd, noisy_kd, attention_kd, ...", TRAINING
    )
    experiment_config_path: str = flag(
        EXPERIMENTS, "YAML file of the experiments; the default is the one in this repository.", FILES
    )
    list_experiments: bool = flag(
        False, "True prints the YAML's experiments with a line on each and ends; it needs no other flag.", FILES
    )
    student_name: str = flag("t5-small", "Hub name or folder of the student, NAME_prune... for fewer layers.", MODEL)
    student_state_dict_path: str | None = flag(
        None, "Weights (.pt, .safetensors or a checkpoint) loaded into the student.", MODEL
    )
    ft_steps_at_end: int | None = flag(
        None,
        "Epochs of fine-tuning on the split ft after the distillation, from its best checkpoint.",
        TRAINING,
        minimum=0,
    )
    stop_training_after_n_epochs: int | None = flag(
        None, "Epochs of distillation that are run; epochs then only shapes the learning rate.", TRAINING, minimum=1
    )

    def check(self) -> None:
        super().check()
        if self.stop_training_after_n_epochs is not None and self.stop_training_after_n_epochs > self.epochs:
            raise UserError(
                f"--stop_training_after_n_epochs {self.stop_training_after_n_epochs}: is more than --epochs "
                f"{self.epochs}, after which the learning rate is 0; make --epochs larger"
            )

    @property
    def experiment_file(self) -> Path:
        return _experiment_file(self.experiment_config_path)

    @classmethod
    def answered(cls, given: dict[str, Any]) -> bool:
        if not given.get("list_experiments"):
            return False
        from src.config.experiments import print_experiments  # here, because it would slow every script's --help

        print_experiments(_experiment_file(given.get("experiment_config_path", EXPERIMENTS)))
        return True


@dataclass(frozen=True, kw_only=True)
class DistillArguments(DistillStoredArguments):
    r"""Distill a teacher that runs beside the student.

    Reads   a dataset file (train, or train_0 ... with pseudo-targets; dev, test, ft), the teacher's weights, and the
            experiments' YAML.
    Writes  into output_dir: eval_scores.csv, eval_generations.json, the best checkpoint, a portable model folder
            `model`, and run.json.

    Example:
      python kd_main.py --experiment_config_key logits_kd --student_name t5-small \
        --teacher_name outputs/shakespeare_7k/t5/ft_teacher/model \
        --task_prompt modern: --max_input_length 48 --max_labels_length 48 --metric_for_best_model sacrebleu \
        --epochs 192 --stop_training_after_n_epochs 96 --ft_steps_at_end 10 --learning_rate 0.0005 \
        --dataset_path datasets/with_augmentations/shakespeare_7k/t5/sampling_48.json \
        --output_dir outputs/shakespeare_7k/t5/kd
    """

    script: ClassVar[str] = "kd_main.py"

    teacher_name: str = flag("t5-large", "Hub name or folder of the teacher.", MODEL)
    teacher_state_dict_path: str | None = flag(
        None, "Weights (.pt, .safetensors or a checkpoint) loaded into the teacher.", MODEL
    )
    teacher_dtype: str = flag(
        "fp32",
        "Number format of the teacher's weights: bf16 takes half the memory, and less time where the device has it.",
        MODEL,
        choices=("fp32", "bf16"),
    )


@dataclass(frozen=True, kw_only=True)
class WritingArguments(SharedArguments):
    """The flags of the two scripts that write with a model and train nothing: gen_main.py and simulate_api_main.py."""

    model_name: str = flag("t5-large", "Hub name or folder of the model, NAME_prune... for fewer layers.", MODEL)
    split_for_generation: tuple[str, ...] | None = flag(
        None, "Splits to generate for; None: every split but ft and dev_ppl.", DATA
    )
    generation_type: str = flag("beam_search", GENERATION_TYPE, DECODING, choices=GENERATION_TYPES)
    temperature: float | None = flag(
        None, "Temperature of a sampling type; None: the type's own (1, _low 0.75, _high 1.5).", DECODING, above=0
    )
    top_p: float | None = flag(
        None,
        "Sample from the fewest tokens that together have this probability; 1: all; None: the type's own (0.95).",
        DECODING,
        above=0,
        maximum=1,
    )
    top_k: int | None = flag(
        None, "Sample from at most this many most probable tokens; 0 or None: no limit.", DECODING, minimum=0
    )

    @property
    def nucleus(self) -> dict[str, float | None]:
        """What the flags say of sampling."""
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}

    def check_writing(self, name: str, returned: int) -> None:
        """Raise a UserError unless the generation type can write `returned` (the flag `name`) targets of an input."""
        beams = self.num_beams
        if "beam_search" in self.generation_type and returned > beams:
            raise UserError(f"--{name} {returned}: {self.generation_type} finds at most --num_beams {beams} targets")
        if self.generation_type == "diverse_beam_search" and beams % 2:
            raise UserError(f"--num_beams {beams}: diverse_beam_search has groups of 2 beams and needs an even number")
        for flag_name, value in self.nucleus.items():
            if value is not None and "sampling" not in self.generation_type:
                raise UserError(f"--{flag_name} {value:g}: {self.generation_type} draws nothing; sampling does")
        splits = self.split_for_generation or ()
        if len(set(splits)) < len(splits):
            raise UserError("--split_for_generation: names a split twice")


@dataclass(frozen=True, kw_only=True)
class GenerateArguments(WritingArguments):
    r"""Write pseudo-targets: let a model, usually the teacher, generate targets for the inputs of a dataset file.

    Reads   a dataset file and a model.
    Writes  output_dir/generated_datasets.json; a killed run continues where it stopped.

    Example:
      python gen_main.py --model_name t5-large --checkpoint_path outputs/shakespeare_7k/t5/ft_teacher/model \
        --task_prompt modern: --max_input_length 48 --max_labels_length 48 --split_for_generation unlabeled train \
        --generation_type sampling --num_return_sequences 48 --add_original_data True \
        --dataset_path datasets/original/shakespeare_7k.json \
        --output_dir datasets/generations/shakespeare_7k/t5/sampling
    """

    script: ClassVar[str] = "gen_main.py"

    add_original_data: bool = flag(
        False, "Also write the original columns, each row repeated for each of its pseudo-targets.", DATA
    )
    num_return_sequences: int = flag(1, "Pseudo-targets of each input.", DECODING, minimum=1)
    generation_engine: str = flag(
        "hf",
        "hf: the model itself; ctranslate2: the model converted, once, if that is installed; auto: ctranslate2 for "
        "beam_search where it is installed and knows the model.",
        DECODING,
        choices=("hf", "ctranslate2", "auto"),
    )

    def check(self) -> None:
        super().check()
        self.check_writing("num_return_sequences", self.num_return_sequences)
        if self.generation_engine != "ctranslate2":
            return
        if self.generation_type not in CTRANSLATE2_TYPES:
            possible = " ".join(CTRANSLATE2_TYPES)
            raise UserError(f"--generation_engine ctranslate2: it has no {self.generation_type}; possible: {possible}")
        if find_spec("ctranslate2") is None:
            raise UserError("--generation_engine ctranslate2: it is not installed; pip install ctranslate2, or use hf")


@dataclass(frozen=True, kw_only=True)
class SimulateApiArguments(WritingArguments):
    r"""Make the file that a completion or chat API would give, with any local model in the API's place.

    Reads   a dataset file and a model, the teacher.
    Writes  output_dir/api_completions.json (.jsonl), for prepare_datasets_main.py --logits_dataset_path: completions,
            their tokens, and of each token the log-probabilities of the most likely ones. A killed run continues where
            it stopped.

    Example:
      python simulate_api_main.py --model_name outputs/shakespeare_7k/t5/ft_teacher/model --task_prompt modern: \
        --max_input_length 48 --max_labels_length 48 --n_completions 4 --top_logprobs 5 --form jsonl \
        --dataset_path datasets/original/shakespeare_7k.json --output_dir datasets/api/shakespeare_7k
    """

    script: ClassVar[str] = "simulate_api_main.py"

    split_for_generation: tuple[str, ...] | None = flag(
        None, "Splits to complete; None: every split but dev_ppl.", DATA
    )
    generation_type: str = flag("sampling", GENERATION_TYPE, DECODING, choices=("greedy", *GENERATION_TYPES))
    n_completions: int = flag(
        1, "Completions of each input of a training split or unlabeled; of other inputs one.", DECODING, minimum=1
    )
    top_logprobs: int = flag(
        5,
        "Most likely tokens whose log-probabilities are written at each position; the token written is always added.",
        DECODING,
        minimum=1,
    )
    form: str = flag(
        "published",
        "Dataset file with an object per token (published) or a chat API's lists (chat), or raw responses (jsonl).",
        FILES,
        choices=API_FORMS,
    )

    def check(self) -> None:
        super().check()
        if self.generation_type == "greedy" and self.n_completions > 1:
            raise UserError(f"--n_completions {self.n_completions}: greedy writes the same completion every time")
        self.check_writing("n_completions", self.n_completions)


@dataclass(frozen=True, kw_only=True)
class PrepareArguments(Arguments):
    r"""Build a dataset file, in one of three modes that follow from the paths given.

    original     no path, or --dataset_path: load a corpus, sample its splits, write {split: {"text", "target"}}.
    generations  --original_dataset_path and --generation_dataset_path: merge pseudo-targets into train_0, train_1, ...
    logits       --logits_dataset_path: align an API's tokens and log-probabilities with the student's tokenizer.

    Writes  output_dir/file_name.

    Example:
      python prepare_datasets_main.py --dataset_name shakespeare --train_size 7000 --val_size 750 --val_ppl_size 750 \
        --unlabeled_split True --unlabeled_size 28000 --file_name shakespeare_7k.json --output_dir datasets/original
    """

    script: ClassVar[str] = "prepare_datasets_main.py"

    output_dir: str = flag(REQUIRED, "Folder of the file to write; made if it does not exist.", FILES)
    file_name: str = flag(
        "dataset.json", "Name of the file to write; in mode logits a name.arrow is a folder of large splits.", FILES
    )
    dataset_name: str = flag(
        "xsum", 'Corpus to load; "" if dataset_path is a dataset file of its own.', FILES, choices=(*CORPORA, "")
    )
    dataset_path: str | None = flag(
        None, "Dataset file to start from, or with dataset_name the corpus' raw files.", FILES
    )
    original_dataset_path: str | None = flag(
        None, "Mode generations: the dataset file whose inputs have pseudo-targets.", FILES
    )
    generation_dataset_path: str | None = flag(
        None, "Mode generations: the generated_datasets.json of gen_main.py.", FILES
    )
    logits_dataset_path: str | None = flag(
        None,
        "Mode logits: an API's completions: JSON of text, prediction, tokens, logprobs, or JSON Lines of responses.",
        FILES,
    )
    train_size: int | None = flag(None, "Rows of train; None: all.", DATA, minimum=1)
    val_size: int | None = flag(None, "Rows of dev; None: all.", DATA, minimum=1)
    test_size: int | None = flag(None, "Rows of test; None: all.", DATA, minimum=1)
    unlabeled_size: int | None = flag(None, "Rows of unlabeled; None: all.", DATA, minimum=1)
    val_ppl_size: int | None = flag(
        None, "Rows of dev_ppl, for the negative log-likelihood; None: no dev_ppl.", DATA, minimum=1
    )
    unlabeled_split: bool = flag(
        False, "Make an unlabeled split: the corpus' own, or else the training rows that were not sampled.", DATA
    )
    filter_by_length: bool = flag(False, "Drop rows with more words than max_input_length or max_labels_length.", DATA)
    max_input_length: int = flag(512, "Words a text may have if filter_by_length is True.", DATA, minimum=1)
    max_labels_length: int = flag(128, "Words a target may have if filter_by_length is True.", DATA, minimum=1)
    add_ft_split: str = flag(
        "full",
        "Split ft: all train rows (full), the corpus' ft rows that are in train (filter), or its own (split).",
        DATA,
        choices=("full", "filter", "split"),
    )
    load_use_unlabeled: bool = flag(True, "Keep the unlabeled split of a dataset_path file.", DATA)
    load_use_ft: bool = flag(True, "Keep the ft split of a dataset_path file.", DATA)
    load_use_val_ppl: bool = flag(True, "Keep the dev_ppl split of a dataset_path file.", DATA)
    use_unlabeled: bool = flag(True, "Modes generations and logits: use the pseudo-targets of unlabeled inputs.", DATA)
    use_labeled: bool = flag(True, "Modes generations and logits: use the pseudo-targets of labeled inputs.", DATA)
    use_original: bool = flag(True, "Mode generations: add the labeled pairs to every train_i.", DATA)
    use_cut_off: bool = flag(
        True, "Mode generations: use pseudo-targets that stopped at the length limit; they never teach an EOS.", DATA
    )
    n_augmentations_per_example: int | None = flag(
        None,
        "Pseudo-targets of each input, None: all it has; in mode logits 0 stands for the references.",
        DATA,
        minimum=0,
    )
    student_name: str = flag("t5-small", "Mode logits: the student whose tokenizer is aligned to.", MODEL)
    special_tokens_in_text: bool = flag(False, SPECIAL_TOKENS, MODEL)
    source_language: str = flag("", SOURCE_LANGUAGE, MODEL)
    target_language: str = flag("", TARGET_LANGUAGE, MODEL)
    teacher_new_word_char: str = flag(
        " ", "Mode logits: what the teacher's tokens that begin a word start with.", MODEL
    )
    alignment: str = flag(
        "edit",
        "Mode logits: tokens align by edit distance, prefixes too (edit), or only at one place in the text (exact).",
        MODEL,
        choices=ALIGNMENTS,
    )
    max_failed_share: float = flag(
        0.1,
        "Mode logits: share of failed, refused or filtered answers, which are left out, above which to stop.",
        DATA,
        minimum=0,
        maximum=1,
    )
    seed: int = flag(42, "Seed of the sampled rows.", RUN, minimum=0, maximum=2**32 - 1)
    debug: bool = flag(False, "Use 32 rows of train and 16 of every other split, to try a command out.", RUN)

    def check(self) -> None:
        super().check()
        mode = prepare_mode(self)
        if not self.file_name:
            raise UserError("--file_name: must not be empty")
        if Path(self.file_name).is_absolute() or ".." in Path(self.file_name).parts or not Path(self.file_name).name:
            raise UserError(f"--file_name {self.file_name}: must name a file in --output_dir")
        if mode == "original" and not self.dataset_name and not self.dataset_path:
            raise UserError('--dataset_name "" needs a --dataset_path to load from')
        if mode == "original" and self.unlabeled_size is not None and not self.unlabeled_split:
            raise UserError(f"--unlabeled_size {self.unlabeled_size} needs --unlabeled_split True")
        if mode != "logits" and self.file_name.endswith(".arrow"):
            raise UserError(f"--file_name {self.file_name}: a folder of Arrow files is for --logits_dataset_path")
        if mode == "logits" and not (self.use_unlabeled or self.use_labeled):
            raise UserError("--use_unlabeled and --use_labeled are both False: nothing to train on")
        if mode == "generations" and not (self.use_unlabeled or self.use_labeled or self.use_original):
            raise UserError("--use_unlabeled, --use_labeled and --use_original are all False: nothing to train on")
        if mode == "generations" and self.n_augmentations_per_example == 0:
            raise UserError("--n_augmentations_per_example: must be at least 1 when pseudo-targets are merged, not 0")
        if not self.teacher_new_word_char:
            raise UserError("--teacher_new_word_char: must not be empty")


def prepare_mode(args: PrepareArguments) -> str:
    """'original', 'generations' or 'logits', as the paths given say; any other mix is a UserError."""
    paths = {
        "--dataset_path": args.dataset_path,
        "--original_dataset_path": args.original_dataset_path,
        "--generation_dataset_path": args.generation_dataset_path,
        "--logits_dataset_path": args.logits_dataset_path,
    }
    given = tuple(name for name, path in paths.items() if path)
    if given in ((), ("--dataset_path",)):
        return "original"
    if given == ("--original_dataset_path", "--generation_dataset_path"):
        return "generations"
    if given == ("--logits_dataset_path",):
        return "logits"
    raise UserError(
        f"{' with '.join(given)} is no mode; give none or --dataset_path (original data), "
        "--original_dataset_path with --generation_dataset_path (pseudo-targets), or --logits_dataset_path alone"
    )


@dataclass(frozen=True, kw_only=True)
class CreateStudentArguments(Arguments):
    r"""Make a student: a trained model with fewer layers, or a small new one with random weights.

    Reads   --from_model: the model whose layers are copied; or nothing but --tokenizer, or --dataset_path to train a
            tokenizer on.
    Writes  a portable model folder output_dir (weights, config, tokenizer) that every --student_name opens.

    Examples:
      python create_student_main.py --from_model t5-large --n_decoder_layers 6 --output_dir outputs/students/t5_24_6
      python create_student_main.py --family bart --d_model 64 --vocab_size 1000 \
        --dataset_path datasets/original/demo.json --output_dir outputs/students/tiny_bart
    """

    script: ClassVar[str] = "create_student_main.py"

    output_dir: str = flag(REQUIRED, "Folder of the model to write.", FILES)
    from_model: str | None = flag(
        None, "Hub name or folder of the model to copy layers from, NAME_prune... allowed; None: random weights.", MODEL
    )
    keep_encoder_layers: tuple[int, ...] | None = flag(
        None, "Encoder layers of from_model to keep, counted from 0, negative from the end; None: all.", MODEL
    )
    keep_decoder_layers: tuple[int, ...] | None = flag(
        None, "Decoder layers of from_model to keep, counted from 0, negative from the end; None: all.", MODEL
    )
    n_encoder_layers: int | None = flag(
        None,
        "Encoder layers: with from_model that many, as far apart as possible; without, the depth (2).",
        MODEL,
        minimum=1,
    )
    n_decoder_layers: int | None = flag(
        None,
        "Decoder layers: with from_model that many, as far apart as possible; without, the depth (2).",
        MODEL,
        minimum=1,
    )
    family: str = flag("t5", "Kind of a new model.", MODEL, choices=FAMILIES)
    d_model: int = flag(128, "Width of a new model.", MODEL, minimum=1)
    d_ff: int | None = flag(
        None, "Inner width of a new model's feed-forward blocks; None: 4 x d_model.", MODEL, minimum=1
    )
    n_heads: int = flag(4, "Attention heads of a new model.", MODEL, minimum=1)
    dropout: float = flag(0.1, "Dropout of a new model.", MODEL, minimum=0, maximum=1)
    max_position_embeddings: int = flag(
        512, "Tokens a new model's sequences may have (T5's positions are relative: no limit).", MODEL, minimum=1
    )
    vocab_size: int = flag(2000, "Entries of a tokenizer trained on dataset_path.", DATA, minimum=10)
    tokenizer: str | None = flag(None, "Hub name or folder of a model whose tokenizer a new model takes.", DATA)
    dataset_path: str | None = flag(
        None, "Dataset file whose training splits a new model's tokenizer is trained on.", FILES
    )
    seed: int = flag(42, "Seed of a new model's weights.", RUN, minimum=0, maximum=2**32 - 1)
    overwrite: bool = flag(False, "Replace the model in output_dir.", RUN)

    def check(self) -> None:
        super().check()
        for side in ("encoder", "decoder"):
            if getattr(self, f"keep_{side}_layers") is not None and getattr(self, f"n_{side}_layers") is not None:
                raise UserError(f"--keep_{side}_layers and --n_{side}_layers: give one of them")
        if self.from_model:
            self._check_copied()
        else:
            self._check_new()

    def _check_copied(self) -> None:
        for each in fields(self):
            if each.name in ONLY_NEW_MODELS and getattr(self, each.name) != each.default:
                raise UserError(f"--{each.name}: is for a new model; with --from_model it is {self.from_model}'s own")

    def _check_new(self) -> None:
        for side in ("encoder", "decoder"):
            if getattr(self, f"keep_{side}_layers") is not None:
                raise UserError(f"--keep_{side}_layers: needs --from_model, whose layers are kept")
        if bool(self.tokenizer) == bool(self.dataset_path):
            raise UserError("a new model needs either --tokenizer or --dataset_path (to train one on), and not both")
        if self.d_model % self.n_heads:
            raise UserError(f"--d_model {self.d_model} is not a multiple of --n_heads {self.n_heads}")
