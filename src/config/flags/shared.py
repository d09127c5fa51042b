"""Flags that several scripts share."""

from dataclasses import dataclass

from src.config.constants import BLEU_TOKENIZERS, GENERATION_TYPES, LOWER_IS_BETTER, METRICS
from src.config.errors import UserError
from src.config.flags.base import (
    DATA,
    DEBUG_ROWS,
    DECODING,
    EVALUATION,
    FILES,
    GENERATION_TYPE,
    MODEL,
    REQUIRED,
    RUN,
    SOURCE_LANGUAGE,
    SPECIAL_TOKENS,
    TARGET_LANGUAGE,
    TASK_PROMPT,
    TRAINING,
    Arguments,
    flag,
)


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
