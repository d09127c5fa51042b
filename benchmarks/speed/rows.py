"""The rows of the benchmark: a workload, its sizes, and the implementations to compare. No heavy imports."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. `layers`: in the encoder and in the decoder, each."""

    width: int
    feed_forward: int
    layers: int
    heads: int = 4


@dataclass(frozen=True)
class Lengths:
    """Sequence lengths in tokens: log-normal around `median`, clipped to 2 … `limit`; all equal if `spread` is 0.

    9,086 pairs of Shakespeare have a median of 15.7 words and a spread of 0.45 (1.3 tokens per word). Half of the
    positions in a random batch of 96 are padding.
    """

    median: float
    limit: int
    spread: float = 0.45


@dataclass(frozen=True)
class Learning:
    """One optimizer update on a batch: teacher, student, loss, backward pass, AdamW. Without a teacher: fine-tuning."""

    family: str
    vocabulary: int
    student: Shape
    teacher: Shape | None
    rows: int
    inputs: Lengths
    labels: Lengths
    forward_weight: float = 0.5
    logits_weight: float = 0.5
    dropout: float = 0.1


@dataclass(frozen=True)
class Writing:
    """Generation of `targets` per input for `rows` inputs, with a T5 as peaked as a trained one."""

    vocabulary: int
    model: Shape
    rows: int
    inputs: Lengths
    generation_type: str
    targets: int = 1
    num_beams: int = 1
    max_new_tokens: int = 48
    mean_length: float = 14.0  # tokens; the probability of EOS is tuned for it


@dataclass(frozen=True)
class Pretrained:
    """Saved models on rows of a dataset: an update of the student or, if `targets` is not 0, samples of the teacher."""

    teacher: str
    student: str
    dataset: str
    rows: int
    max_input_length: int
    max_labels_length: int
    targets: int = 0  # per input


@dataclass(frozen=True)
class Row:
    """A workload and its implementations, each a line of the table.

    The first implementation is ours; its matrix products define the floor. "products" runs only these products, in
    their own shapes. A row with one repetition measures memory: no warm-up, and every implementation runs alone.
    """

    name: str
    work: Learning | Writing | Pretrained
    implementations: tuple[str, ...]
    repetitions: int = 7


SHORT = Lengths(median=20, limit=48)
T5_15M, T5_5M = Shape(256, 680, 4), Shape(128, 340, 2)  # with 32,128 tied embeddings: 15.6 and 5.0 million parameters
WIDE, NARROW = Shape(256, 680, 2), Shape(128, 340, 2)

KD_T5 = Learning("t5", 32_128, T5_5M, T5_15M, 96, SHORT, SHORT)
FT_T5 = Learning("t5", 32_128, T5_15M, None, 96, SHORT, SHORT, forward_weight=1.0, logits_weight=0.0)
PROMPT, REST, WHOLE = Lengths(128, 128, spread=0), Lengths(384, 384, spread=0), Lengths(512, 512, spread=0)
SAMPLING = Writing(32_128, T5_15M, 32, SHORT, "sampling", targets=24)  # 32 inputs: the default of --batch_size


def _large(family: str, vocabulary: int) -> Learning:
    """16 sequences of 512 tokens without padding. TRL's loss has only the KL, so the other losses do too."""
    if family == "t5":
        return Learning(family, vocabulary, NARROW, WIDE, 16, PROMPT, WHOLE)
    return Learning(family, vocabulary, NARROW, WIDE, 16, PROMPT, REST, forward_weight=0.0, logits_weight=1.0)


ROWS = (
    Row("kd-t5", KD_T5, ("ours", "textbook", "products")),
    Row("kd-t5-bf16", KD_T5, ("ours-bf16", "ours")),
    Row("kd-t5-compiled", KD_T5, ("ours-compiled", "ours")),
    Row("kd-t5-150k-16x512", _large("t5", 151_936), ("ours", "textbook"), repetitions=1),
    Row("kd-gpt2-50k-16x512", _large("gpt2", 50_257), ("ours", "textbook", "trl"), repetitions=1),
    Row("kd-llama-150k-16x512", _large("llama", 151_936), ("ours", "textbook", "trl"), repetitions=1),
    Row("ft-t5", FT_T5, ("ours", "trainer")),
    Row("gen-t5-32k", SAMPLING, ("ours", "generate", "ctranslate2", "products"), repetitions=5),
    Row(
        "gen-t5-32k-8-inputs", replace(SAMPLING, rows=8), ("ours", "generate", "ctranslate2", "products"), repetitions=5
    ),
    Row("gen-t5-32k-bf16", replace(SAMPLING, rows=8), ("ours-bf16", "ours"), repetitions=5),
    Row(
        "gen-t5-2k", replace(SAMPLING, vocabulary=2_000), ("ours", "generate", "ctranslate2", "products"), repetitions=5
    ),
    Row(
        "greedy-t5-32k",  # an evaluation with --num_beams 1
        Writing(32_128, T5_15M, 32, SHORT, "beam_search"),
        ("ours", "generate", "ctranslate2"),
        repetitions=5,
    ),
    Row(
        "beam-t5-32k",
        Writing(32_128, T5_15M, 32, SHORT, "beam_search", num_beams=4),
        ("ours", "generate", "ctranslate2"),
        repetitions=5,
    ),
    Row(
        "beam-48-t5-32k",  # K-Beams, the paper's 48 pseudo-targets per input
        Writing(32_128, T5_15M, 8, SHORT, "beam_search", targets=48, num_beams=48),
        ("ours", "generate", "ctranslate2"),
        repetitions=3,
    ),
)
