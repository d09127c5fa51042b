"""Flags of gen_main.py."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar

from src.config.constants import CTRANSLATE2_TYPES
from src.config.errors import UserError
from src.config.flags.base import DATA, DECODING, flag
from src.config.flags.shared import WritingArguments


@dataclass(frozen=True, kw_only=True)
class GenerateArguments(WritingArguments):
    r"""Generate pseudo-targets for the inputs of a dataset with a model, usually the teacher.

    Reads   a dataset file and a model.
    Writes  output_dir/generated_datasets.json. A killed run continues where it stopped.

    Example:
      python gen_main.py --model_name t5-large --checkpoint_path outputs/shakespeare_7k/t5/ft_teacher/model \
        --task_prompt modern: --max_input_length 48 --max_labels_length 48 --split_for_generation unlabeled train \
        --generation_type sampling --num_return_sequences 48 --add_original_data True \
        --dataset_path datasets/original/shakespeare_7k.json \
        --output_dir datasets/generations/shakespeare_7k/t5/sampling
    """

    script: ClassVar[str] = "gen_main.py"

    add_original_data: bool = flag(
        False, "Also write the original columns, with each row repeated for each of its pseudo-targets.", DATA
    )
    num_return_sequences: int = flag(1, "Number of pseudo-targets for each input.", DECODING, minimum=1)
    generation_engine: str = flag(
        "hf",
        "Library that generates. hf: transformers. ctranslate2: CTranslate2, which converts the model once. auto: "
        "ctranslate2 for beam search if it is installed and supports the model, else hf.",
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
            raise UserError(
                f"--generation_engine ctranslate2: does not support {self.generation_type}; possible: {possible}"
            )
        if find_spec("ctranslate2") is None:
            raise UserError("--generation_engine ctranslate2: is not installed; run pip install ctranslate2, or use hf")
