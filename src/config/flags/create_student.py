"""Flags of create_student_main.py."""

from dataclasses import dataclass, fields
from typing import ClassVar

from src.config.errors import UserError
from src.config.flags.base import DATA, FILES, MODEL, PRUNE_HELP, RUN, DataArguments, flag

FAMILIES = ("t5", "bart", "gpt2", "opt", "llama")
ONLY_NEW_MODELS = {
    "family", "d_model", "d_ff", "n_heads", "dropout", "max_position_embeddings",
    "vocab_size", "tokenizer", "dataset_path",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CreateStudentArguments(DataArguments):
    r"""Make a student: a trained model with fewer layers, or a small new model with random weights.

    Reads   --from_model, the model whose layers are copied. For a new model: --tokenizer, or --dataset_path to train a
            tokenizer on.
    Writes  a model folder (weights, config, tokenizer) to output_dir; use it as --student_name or --model_name.

    Examples:
      python create_student_main.py --from_model t5-large --n_decoder_layers 6 --output_dir outputs/students/t5_24_6
      python create_student_main.py --family bart --d_model 64 --vocab_size 1000 \
        --dataset_path datasets/original/demo.json --output_dir outputs/students/tiny_bart
    """

    script: ClassVar[str] = "create_student_main.py"

    from_model: str | None = flag(
        None,
        "Model to take layers from: hub name, model or adapter folder, or GGUF file. None makes a new model. "
        f"{PRUNE_HELP}",
        MODEL,
    )
    keep_encoder_layers: tuple[int, ...] | None = flag(
        None, "Encoder layers of --from_model to keep: from 0, or from -1 backwards. None means all.", MODEL
    )
    keep_decoder_layers: tuple[int, ...] | None = flag(
        None, "Decoder layers of --from_model to keep: from 0, or from -1 backwards. None means all.", MODEL
    )
    n_encoder_layers: int | None = flag(
        None, "Encoder layers to keep (evenly spaced) or build. None means all, or 2 in a new model.", MODEL, minimum=1
    )
    n_decoder_layers: int | None = flag(
        None, "Decoder layers to keep (evenly spaced) or build. None means all, or 2 in a new model.", MODEL, minimum=1
    )
    family: str = flag("t5", "New model: its architecture.", MODEL, choices=FAMILIES)
    d_model: int = flag(128, "New model: width of its hidden states.", MODEL, minimum=1)
    d_ff: int | None = flag(None, "New model: feed-forward width. None means 4 x --d_model.", MODEL, minimum=1)
    n_heads: int = flag(4, "New model: number of attention heads; must divide --d_model.", MODEL, minimum=1)
    dropout: float = flag(0.1, "New model: dropout rate.", MODEL, minimum=0, maximum=1)
    max_position_embeddings: int = flag(512, "New model: maximum length in tokens; t5 has none.", MODEL, minimum=1)
    vocab_size: int = flag(2000, "New model: vocabulary size of the trained tokenizer.", DATA, minimum=10)
    tokenizer: str | None = flag(None, "New model: hub name or folder of the model whose tokenizer it uses.", DATA)
    dataset_path: str | None = flag(None, "New model: dataset to train a tokenizer on (train and unlabeled).", FILES)
    overwrite: bool = flag(False, "Replace the model in --output_dir.", RUN)

    def check(self) -> None:
        super().check()
        for side in ("encoder", "decoder"):
            if getattr(self, f"keep_{side}_layers") is None:
                continue
            if getattr(self, f"n_{side}_layers") is not None:
                raise UserError(f"--keep_{side}_layers and --n_{side}_layers: give one of them")
            if not self.from_model:
                raise UserError(f"--keep_{side}_layers: needs --from_model")
        if self.from_model:
            for each in fields(self):
                if each.name in ONLY_NEW_MODELS and getattr(self, each.name) != each.default:
                    raise UserError(f"--{each.name}: is for a new model; leave it out with --from_model")
        elif bool(self.tokenizer) == bool(self.dataset_path):
            raise UserError("a new model needs either --tokenizer or --dataset_path (to train one on), not both")
        elif self.d_model % self.n_heads:
            raise UserError(f"--d_model {self.d_model} is not a multiple of --n_heads {self.n_heads}")
