"""Flags as dataclass fields: `flag` declares one, `Arguments` checks them and has the flags of every script."""

from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from src.config.constants import DEV, ID, TARGET, TEST, TEXT
from src.config.errors import UserError
from src.config.parsing import check_value

LARGEST_SEED = 2**32 - 1  # numpy refuses larger ones
REPOSITORY = Path(__file__).resolve().parents[3]
REQUIRED = MISSING  # the default of a flag that must be given

# The headings of --help, in the order in which they are shown.
FILES, MODEL, DATA, TRAINING = "files", "models", "data", "training"
EVALUATION, DECODING, RUN = "evaluation and checkpoints", "decoding", "the run"
GROUPS = (FILES, MODEL, DATA, TRAINING, EVALUATION, DECODING, RUN)

PRUNE_HELP = "NAME_prune0_2:0_5 keeps only encoder layers 0 and 2 and decoder layers 0 and 5."

CHAT_TEMPLATE_HELP = (
    "Build the prompt of a decoder-only model by its tokenizer's chat template: the text is the user's message, "
    "thinking is off, and targets end with the template's end of turn."
)


def flag(
    default: Any,
    sentence: str,
    group: str,
    *,
    choices: Sequence[str] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    positional: bool = False,
    none: str = "None",
) -> Any:
    """A dataclass field for a flag: its default (or REQUIRED), its sentence and heading in --help, its allowed values.

    minimum and maximum are inclusive, `above` is exclusive. positional: the command line has the values (of a list)
    without the name, each a word as it is. none: the word for None, if the type allows it.
    """
    limits = {"choices": choices, "minimum": minimum, "maximum": maximum, "above": above}
    metadata = {"sentence": sentence, "group": group, "limits": limits, "positional": positional, "none": none}
    return field(default=default, metadata=metadata)


def spelled(each: Field[Any]) -> str:
    """A flag as the command line has it: `--name`, or `NAME` if it is positional."""
    return each.name.upper() if each.metadata["positional"] else f"--{each.name}"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Base class of every script's arguments, with the flags that all have. An instance checks its values."""

    script: ClassVar[str]
    takes_several_processes: ClassVar[bool] = False

    seed: int = flag(
        42, "Seed of random choices; equal seeds and flags give equal results.", RUN, minimum=0, maximum=LARGEST_SEED
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            check_value(value, each.metadata["limits"], spelled(each))
            if value == "" and each.default is REQUIRED:
                raise UserError(f"{spelled(each)}: must not be empty")
        self.check()

    def check(self) -> None:
        """Raise a UserError if flags contradict each other. Subclasses extend it."""

    @classmethod
    def answer_query(cls, given: dict[str, Any]) -> bool:
        """Print the answer if a flag only asks for information, such as --list_experiments; return whether one did."""
        return False


@dataclass(frozen=True, kw_only=True)
class DataArguments(Arguments):
    """Flags of every script that reads texts."""

    output_dir: str = flag(REQUIRED, "Folder for everything that the script writes; created if missing.", FILES)
    text_column: str = flag(
        TEXT, "Column of the inputs; of a nested column a part, as in `translation.en` or `answers.text`.", DATA
    )
    target_column: str = flag(TARGET, "Column of the targets (texts, or lists of references), or a part of one.", DATA)
    val_size: float | None = flag(
        None,
        "If the data have no split dev: number of train rows to draw for it, or share of them (below 1).",
        DATA,
        above=0,
    )
    test_size: float | None = flag(None, "As --val_size, for the split test.", DATA, above=0)

    @property
    def columns(self) -> dict[str, str]:
        """The user's names of columns by ours."""
        return {TEXT: self.text_column, TARGET: self.target_column}

    @property
    def split_sizes(self) -> dict[str, float | None]:
        """Rows, or the share below 1, of the splits that can be drawn from train."""
        return {DEV: self.val_size, TEST: self.test_size}

    def check(self) -> None:
        super().check()
        for name in ("val_size", "test_size"):
            size = getattr(self, name)
            if size is not None and size > 1 and size % 1:
                raise UserError(f"--{name}: {size} is neither a number of rows nor a share below 1")


@dataclass(frozen=True, kw_only=True)
class TokenizerArguments(DataArguments):
    """Flags of every script that tokenizes texts."""

    id_column: str | None = flag(
        None, "Column that identifies a row; written beside its predictions and pseudo-targets as `id`.", DATA
    )
    special_tokens_in_text: bool = flag(
        False,
        "Read the names of special tokens in texts (`</s>`, `<pad>`, those of a chat template) as these tokens. False "
        "reads them as ordinary text.",
        DATA,
    )
    chat_template: bool = flag(False, CHAT_TEMPLATE_HELP, DATA)
    source_language: str = flag(
        "",
        "Language of the inputs, for a multilingual model, as its tokenizer names it (en_XX, en, eng_Latn, ...). Empty "
        "means the language saved with the model.",
        DATA,
    )
    target_language: str = flag(
        "",
        "Language of the targets, for a multilingual model; labels and generated texts begin with its token. Empty "
        "means the language saved with the model.",
        DATA,
    )

    @property
    def columns(self) -> dict[str, str]:
        return super().columns | ({} if self.id_column is None else {ID: self.id_column})
