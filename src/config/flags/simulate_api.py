"""Flags of simulate_api_main.py."""

from dataclasses import dataclass
from typing import ClassVar

from src.config.constants import GENERATION_TYPES
from src.config.errors import UserError
from src.config.flags.base import DATA, DECODING, FILES, GENERATION_TYPE_HELP, flag
from src.config.flags.shared import WritingArguments

API_FORMS = ("published", "chat", "jsonl")


@dataclass(frozen=True, kw_only=True)
class SimulateApiArguments(WritingArguments):
    r"""Write completions and log-probabilities of a local model as a completion or chat API would return them.

    Reads   a dataset file and a model, the teacher.
    Writes  output_dir/api_completions.json (.jsonl) for prepare_datasets_main.py --logits_dataset_path: completions,
            their tokens, and the log-probabilities of the most likely tokens at each position. A killed run continues
            where it stopped.

    Example:
      python simulate_api_main.py --model_name outputs/shakespeare_7k/t5/ft_teacher/model --task_prompt modern: \
        --max_input_length 48 --max_labels_length 48 --n_completions 4 --top_logprobs 5 --form jsonl \
        --dataset_path datasets/original/shakespeare_7k.json --output_dir datasets/api/shakespeare_7k
    """

    script: ClassVar[str] = "simulate_api_main.py"

    split_for_generation: tuple[str, ...] | None = flag(
        None, "Splits to complete. None means every split except dev_ppl.", DATA
    )
    generation_type: str = flag("sampling", GENERATION_TYPE_HELP, DECODING, choices=("greedy", *GENERATION_TYPES))
    n_completions: int = flag(
        1, "Completions for each input of training splits and unlabeled; others get one.", DECODING, minimum=1
    )
    top_logprobs: int = flag(
        5, "Most likely tokens to write at each position; the generated token is always added.", DECODING, minimum=1
    )
    form: str = flag(
        "published",
        "File form: published or chat (both dataset files), or jsonl (raw responses).",
        FILES,
        choices=API_FORMS,
    )

    def check(self) -> None:
        super().check()
        if self.generation_type == "greedy" and self.n_completions > 1:
            raise UserError(
                f"--n_completions {self.n_completions}: greedy writes the same completion every time; use sampling"
            )
        self.check_writing("n_completions", self.n_completions)
