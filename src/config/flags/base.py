"""Flags as dataclass fields: `flag` declares one, `Arguments` checks them; help texts that several scripts share."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from src.config.errors import UserError
from src.config.parsing import check_value

ALIGNMENTS = ("edit", "exact")
DEBUG_ROWS = 128
REPOSITORY = Path(__file__).resolve().parents[3]


REQUIRED = MISSING  # the default of a flag that must be given

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


GENERATION_TYPE = "How to decode: _short and _long set the length penalty, _low and _high the temperature."


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
    """A dataclass field for a flag: its default (or REQUIRED), its sentence and heading in --help, its allowed values.

    minimum and maximum are inclusive, `above` is exclusive.
    """
    limits = {"choices": choices, "minimum": minimum, "maximum": maximum, "above": above}
    return field(default=default, metadata={"sentence": sentence, "group": group, "limits": limits})


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Base class of every script's arguments: an instance checks its values when it is made."""

    script: ClassVar[str]

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            check_value(value, each.metadata["limits"], f"--{each.name}")
            if value == "" and each.default is REQUIRED:
                raise UserError(f"--{each.name}: must not be empty")
        self.check()

    def check(self) -> None:
        """Raise a UserError if flags contradict each other. Subclasses extend it."""

    @classmethod
    def answer_query(cls, given: dict[str, Any]) -> bool:
        """Print the answer if a flag only asks for information, such as --list_experiments; return whether one did."""
        return False
