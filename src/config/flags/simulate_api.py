"""Flags of simulate_api_main.py."""

from dataclasses import dataclass
from typing import ClassVar

from src.config.constants import GENERATION_TYPES
from src.config.errors import UserError
from src.config.flags.base import DATA, DECODING, FILES, GENERATION_TYPE, flag
from src.config.flags.shared import WritingArguments

API_FORMS = ("published", "chat", "jsonl")


@dataclass(frozen=True, kw_only=True)
class SimulateApiArguments(WritingArguments):
    r"""Make the file that a completion or chat API would give, with any local model in the API's place.

    Reads   a dataset file and a model, the teacher.
    Writes  output_dir/api_completions.json (.jsonl), for prepare_datasets_main.py --logits_dataset_path: completions,
            their tokens, and of each token the log-probabilities of the most likely ones. A killed run continues where
            it stopped.

    Example:
      python simulate_api_main.py --model_name outputs/shakespeare_7k/t5/ft_teacher/model --task_prompt modern: \
        --max_input_length 48 --max_labels_length 48 --n_completions 4 --top_logprobs 5 --form jsonl \
        --dataset_path datasets/original/shakespeare_7k.json --output_dir datasets/api/shakespeare_7k
    """

    script: ClassVar[str] = "simulate_api_main.py"

    split_for_generation: tuple[str, ...] | None = flag(
        None, "Splits to complete; None: every split but dev_ppl.", DATA
    )
    generation_type: str = flag("sampling", GENERATION_TYPE, DECODING, choices=("greedy", *GENERATION_TYPES))
    n_completions: int = flag(
        1, "Completions of each input of a training split or unlabeled; of other inputs one.", DECODING, minimum=1
    )
    top_logprobs: int = flag(
        5,
        "Most likely tokens whose log-probabilities are written at each position; the token written is always added.",
        DECODING,
        minimum=1,
    )
    form: str = flag(
        "published",
        "Dataset file with an object per token (published) or a chat API's lists (chat), or raw responses (jsonl).",
        FILES,
        choices=API_FORMS,
    )

    def check(self) -> None:
        super().check()
        if self.generation_type == "greedy" and self.n_completions > 1:
            raise UserError(f"--n_completions {self.n_completions}: greedy writes the same completion every time")
        self.check_writing("n_completions", self.n_completions)
