"""Flags of the scripts that train or generate text, and of those that train."""

from dataclasses import dataclass
from typing import ClassVar

from src.config.constants import BLEU_TOKENIZERS, LOWER_IS_BETTER, METRICS, NO_TRACKER, OPTIMIZERS, SCHEDULES, TRACKERS
from src.config.errors import UserError
from src.config.flags.base import DATA, DECODING, EVALUATION, FILES, REQUIRED, RUN, TRAINING, TokenizerArguments, flag

DEBUG_ROWS = 128  # of each split, with --debug True
TRACKED_STEPS = 50  # between rows of losses for a tracker
PROMPT_HELP = (
    "Prompt added to every input: a prefix for encoder-decoder models, a suffix for decoder-only models, in which "
    r"`\n` and `\t` mean newline and tab. A missing space is added. The value `bart` means no prompt."
)
SYSTEM_PROMPT_HELP = "System message for --chat_template, for inputs without one. Empty means the template's own."


@dataclass(frozen=True, kw_only=True)
class SharedArguments(TokenizerArguments):
    """Flags of every script that trains or generates text with a model."""

    takes_several_processes: ClassVar[bool] = True

    dataset_path: str = flag(
        REQUIRED,
        "Dataset: a JSON file of splits; a JSON Lines, Parquet, CSV or TSV file, or a folder with one for each split; "
        "or hf:<name> from the Hugging Face Hub.",
        FILES,
    )
    checkpoint_path: str | None = flag(
        None,
        "Checkpoint to resume from, or weights to start with (.pt, .safetensors, model folder); None: the model's own.",
        FILES,
    )
    max_input_length: int = flag(
        512, "Maximum number of tokens of an input, prompt included; only the text is cut.", DATA, minimum=1
    )
    max_labels_length: int = flag(
        128, "Maximum number of tokens of a target, and of generated tokens. Longer targets are cut.", DATA, minimum=1
    )
    task_prompt: str = flag("", PROMPT_HELP, DATA)
    system_prompt: str = flag("", SYSTEM_PROMPT_HELP, DATA)
    truncation_side: str = flag(
        "right",
        "Side on which long inputs are cut: their end or beginning. With --chat_template, of several messages the "
        "oldest go first.",
        DATA,
        choices=("right", "left"),
    )
    mixed_precision: str = flag(
        "no", "Number format of the forward passes. `no` means float32.", RUN, choices=("no", "fp16", "bf16")
    )
    num_beams: int = flag(4, "Number of beams for beam search. Plain sampling ignores it.", DECODING, minimum=1)
    model_generation_settings: bool = flag(
        True,
        "Use the model's own generation settings (no_repeat_ngram_size, min_length, length_penalty, ...) unless a flag "
        "overrides them. False ignores them.",
        DECODING,
    )
    batch_size: int = flag(
        32, "Number of rows in an optimizer update, or in a batch of a script that only generates.", DATA, minimum=1
    )
    debug: bool = flag(False, f"Try the command out on at most {DEBUG_ROWS} rows of each split.", RUN)
    resume: bool = flag(True, "Continue an interrupted run in --output_dir. False refuses to continue it.", RUN)
    overwrite: bool = flag(False, "Start again and replace what an earlier run left in --output_dir.", RUN)
    dry_run: bool = flag(
        False, "Check everything, load the models, time a few steps, report time, memory and disk; write nothing.", RUN
    )

    def check(self) -> None:
        super().check()
        if self.system_prompt and self.chat_template is False:
            raise UserError("--system_prompt: needs --chat_template True")

    @property
    def max_rows(self) -> int | None:
        """The number of rows to read from each split; None means all."""
        return DEBUG_ROWS if self.debug else None


@dataclass(frozen=True, kw_only=True)
class TrainingArguments(SharedArguments):
    """Flags of the scripts that train: ft_main.py, kd_main.py and kd_dataset_with_logits_main.py."""

    compile: bool = flag(
        False,
        "Compile the models' layers: the start takes a minute or more, later steps are faster. Not available for "
        "experiments that compare hidden states or attention.",
        RUN,
    )
    gradient_checkpointing: bool = flag(
        False,
        "Keep only the inputs of the student's layers for the backward pass and compute the rest again: less memory, "
        "slower steps, the same gradients.",
        RUN,
    )
    max_gpu_batch_size: int | None = flag(
        8,
        "Rows in a micro-batch on each device; --batch_size must be a multiple of it, or smaller. auto starts with all "
        "rows of an update and halves their number when memory runs out; a step is then an update.",
        TRAINING,
        minimum=1,
        none="auto",
    )
    learning_rate: float = flag(
        1e-5,
        "Peak learning rate, reached after a linear warm-up; --lr_scheduler_type says how it decays.",
        TRAINING,
        above=0,
    )
    warmup_steps: float | None = flag(
        None,
        "Updates over which the learning rate rises from 0, or a share of all updates if below 1. None means 100, or "
        "fewer if the run has fewer than 200 updates; none if training starts from a checkpoint.",
        TRAINING,
        minimum=0,
    )
    lr_scheduler_type: str = flag(
        "linear", "Learning rate after the warm-up; constant has no warm-up.", TRAINING, choices=SCHEDULES
    )
    label_smoothing: float = flag(
        0.0,
        "Label smoothing of the NLL in training: this share of each label's probability is spread evenly over the "
        "vocabulary. Teachers' distributions and the scores are not smoothed.",
        TRAINING,
        minimum=0,
        maximum=0.9,
    )
    optimizer: str = flag(
        "adamw",
        "Optimizer. Its states take 8 bytes per weight with adamw, 2 with adamw_8bit (bitsandbytes, on a GPU), and "
        "almost none with adafactor.",
        TRAINING,
        choices=OPTIMIZERS,
    )
    optimizer_eps: float = flag(1e-8, "Epsilon of AdamW.", TRAINING, above=0)
    weight_decay: float = flag(1e-5, "Weight decay of the optimizer.", TRAINING, minimum=0)
    clip_grad_norm: float | None = flag(None, "Maximum gradient norm. None means no clipping.", TRAINING, above=0)
    several_references: str = flag(
        "all", "Of a list of references, train on all (one row each) or the first.", DATA, choices=("all", "first")
    )
    epochs: int = flag(20, "Number of training epochs; the learning rate decays over them.", TRAINING, minimum=1)
    n_patience_epochs: int | None = flag(
        None, "Stop after this many epochs without a better score on dev. None never stops early.", TRAINING, minimum=1
    )
    do_train: bool = flag(True, "Train the model. False only scores it on test.", TRAINING)
    metrics: tuple[str, ...] | None = flag(
        None,
        "Metrics to compute besides --metric_for_best_model. `all` means all that are installed; None means no others.",
        EVALUATION,
        choices=(*METRICS, "all"),
    )
    metric_for_best_model: str = flag(
        "rouge2_f", "Score on dev that selects the best checkpoint, for example sacrebleu or nll.", EVALUATION
    )
    bleu_tokenize: str = flag(
        "13a",
        "Tokenizer of sacreBLEU: 13a or intl for languages with spaces; zh, ja-mecab or ko-mecab for Chinese, Japanese "
        "or Korean; char or flores200 for any language.",
        EVALUATION,
        choices=BLEU_TOKENIZERS,
    )
    greater_is_better: bool | None = flag(
        None, "Not needed: it follows from --metric_for_best_model. A wrong value is refused.", EVALUATION
    )
    save_checkpoint_every_n_steps: float = flag(
        0.55,
        "Steps (micro-batches) between evaluations on dev, or a share of an epoch if at most 1. Every epoch also "
        "ends with one.",
        EVALUATION,
        above=0,
    )
    test_every_n_epochs: int | None = flag(
        None, "Epochs between extra tests. None tests only the best checkpoint, at the end.", EVALUATION, minimum=1
    )
    keep_checkpoint_after_test: bool = flag(
        False,
        "Keep the best checkpoint's folder, optimizer included, after the final test; False keeps only its weights.",
        EVALUATION,
    )
    save_state_every_n_minutes: float = flag(
        15.0, "Minutes between saved states to resume from. Every evaluation saves one too.", EVALUATION, above=0
    )
    report_to: str = flag(
        NO_TRACKER,
        "Experiment tracker that gets losses, scores and some predictions while the run goes on; its package must be "
        "installed. trackio and tensorboard need no account.",
        RUN,
        choices=(NO_TRACKER, *TRACKERS),
    )
    log_every_n_steps: int | None = flag(
        None,
        "Steps (micro-batches) between rows of train_losses.csv, besides the row at each evaluation. None means only "
        f"those, or every {TRACKED_STEPS} steps with --report_to.",
        RUN,
        minimum=1,
    )

    @property
    def loss_interval(self) -> int | None:
        """Steps between rows of losses; None means that only evaluations write them."""
        return self.log_every_n_steps or (None if self.report_to == NO_TRACKER else TRACKED_STEPS)

    @property
    def metric_options(self) -> dict[str, dict[str, str]]:
        """Settings of metrics that flags set, by metric."""
        return {"sacrebleu": {"tokenize": self.bleu_tokenize}}

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher metric_for_best_model is better."""
        return self.metric_for_best_model not in LOWER_IS_BETTER

    @property
    def micro_batch_size(self) -> int:
        """Rows in a micro-batch."""
        return min(self.batch_size, self.max_gpu_batch_size or self.batch_size)

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches in an optimizer update."""
        return self.batch_size // self.micro_batch_size

    def check(self) -> None:
        super().check()
        if self.max_gpu_batch_size is not None and self.batch_size % self.micro_batch_size:
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
        warmup = self.warmup_steps or 0.0
        if warmup > 1 and not warmup.is_integer():
            raise UserError(f"--warmup_steps: {warmup} is neither an integer number of updates nor a share (below 1)")
        if warmup and self.lr_scheduler_type == "constant":
            raise UserError(f"--warmup_steps {warmup:g}: constant has no warm-up; take constant_with_warmup")
        steps = self.save_checkpoint_every_n_steps
        if steps > 1 and not steps.is_integer():
            raise UserError(
                f"--save_checkpoint_every_n_steps: {steps} is neither an integer number of steps "
                "nor a share of an epoch (at most 1)"
            )
