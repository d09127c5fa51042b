"""Flags of create_student_main.py."""

from dataclasses import dataclass, fields
from typing import ClassVar

from src.config.errors import UserError
from src.config.flags.base import DATA, FILES, MODEL, REQUIRED, RUN, Arguments, flag

FAMILIES = ("t5", "bart", "gpt2", "opt", "llama")


ONLY_NEW_MODELS = {
    "family", "d_model", "d_ff", "n_heads", "dropout", "max_position_embeddings",
    "vocab_size", "tokenizer", "dataset_path",
}  # fmt: skip


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
