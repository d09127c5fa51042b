"""Names of splits, columns, metrics, corpora and generation types."""

IGNORE_INDEX = -100  # pads labels; the losses skip it

TRAIN, DEV, TEST, UNLABELED = "train", "dev", "test", "unlabeled"
FT, DEV_PPL = "ft", "dev_ppl"  # labeled rows for the closing fine-tuning; dev rows for the negative log-likelihood

TEXT, TARGET, GENERATED = "text", "target", "generated"
ID = "id"  # of a row, from the column that --id_column names
FINISH_REASON, STOP, LENGTH = "finish_reason", "stop", "length"  # stop: ended by itself; length: cut off
INPUT_HASH = "input_hash"  # identifies the input of a pseudo-target whose text is not stored beside it

GENERATION_TYPES = (
    "beam_search",
    "beam_search_short",
    "beam_search_long",
    "diverse_beam_search",
    "sampling",
    "sampling_low",
    "sampling_high",
    "sampling_beam_search",
)
CTRANSLATE2_TYPES = tuple(
    name for name in GENERATION_TYPES if name not in ("diverse_beam_search", "sampling_beam_search")
)
SAMPLING_TYPES = ("sampling", "sampling_low", "sampling_high")
METRICS = ("wer", "gleu", "rouge", "sacrebleu", "bertscore", "meteor", "chrf")
BLEU_TOKENIZERS = ("13a", "intl", "zh", "ja-mecab", "ko-mecab", "flores200", "char", "none")
OPTIMIZERS = ("adamw", "adafactor", "adamw_8bit")
SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup", "inverse_sqrt")  # of the learning rate
LOWER_IS_BETTER = ("nll", "ppl", "wer")  # of all scores; for the others higher is better
CORPORA = ("xsum", "squad", "art", "bisect", "shakespeare", "demo")
NO_TRACKER = "none"
TRACKERS = ("trackio", "tensorboard", "wandb", "mlflow", "comet_ml", "swanlab", "clearml", "dvclive")  # of accelerate
