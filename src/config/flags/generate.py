"""Flags of gen_main.py and simulate_api_main.py."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar
from urllib.parse import urlsplit

from src.config.constants import CTRANSLATE2_TYPES, GENERATION_TYPES, SAMPLING_TYPES
from src.config.errors import UserError
from src.config.flags.base import DATA, DECODING, FILES, MODEL, PRUNE_HELP, RUN, flag
from src.config.flags.shared import SharedArguments

GENERATION_TYPE_HELP = (
    "Decoding method; _short and _long set the length penalty (0.4, 2.0), _low and _high the temperature (0.75, 1.5)."
)


def generated_file(dataset_path: str) -> str:
    """The name of the file of pseudo-targets: a folder of Arrow files for a dataset that is one."""
    return "generated_datasets.arrow" if dataset_path.rstrip("/").endswith(".arrow") else "generated_datasets.json"


@dataclass(frozen=True, kw_only=True)
class WritingArguments(SharedArguments):
    """Flags of the scripts that only generate text: gen_main.py and simulate_api_main.py."""

    model_name: str = flag("t5-large", f"Hub name, model or adapter folder, or GGUF file. {PRUNE_HELP}", MODEL)
    split_for_generation: tuple[str, ...] | None = flag(
        None, "Splits to generate for. None means every split except ft and dev_ppl.", DATA
    )
    generation_type: str = flag("beam_search", GENERATION_TYPE_HELP, DECODING, choices=GENERATION_TYPES)
    temperature: float | None = flag(
        None, "Sampling temperature. None means that of --generation_type (1, 0.75 or 1.5).", DECODING, above=0
    )
    top_p: float | None = flag(
        None, "Sample from the fewest tokens of this total probability. None means 0.95.", DECODING, above=0, maximum=1
    )
    top_k: int | None = flag(
        None, "Sample from this many of the most probable tokens. 0 or None means no limit.", DECODING, minimum=0
    )

    @property
    def nucleus(self) -> dict[str, float | None]:
        """The sampling settings that flags set; None leaves one to the generation type."""
        return {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}

    def check_writing(self, name: str, returned: int) -> None:
        """Raise a UserError if the generation type cannot write `returned` (the value of --name) targets per input."""
        beams = self.num_beams
        if "beam_search" in self.generation_type and returned > beams:
            raise UserError(f"--{name} {returned}: {self.generation_type} finds at most --num_beams {beams} targets")
        if self.generation_type == "diverse_beam_search" and beams % 2:
            raise UserError(f"--num_beams {beams}: diverse_beam_search has groups of 2 beams and needs an even number")
        for flag_name, value in self.nucleus.items():
            if value is not None and "sampling" not in self.generation_type:
                raise UserError(f"--{flag_name} {value:g}: {self.generation_type} does not sample; sampling does")
        splits = self.split_for_generation or ()
        if len(set(splits)) < len(splits):
            raise UserError("--split_for_generation: names a split twice")


@dataclass(frozen=True, kw_only=True)
class GenerateArguments(WritingArguments):
    r"""Generate pseudo-targets for the inputs of a dataset with a model, usually the teacher.

    Reads   a dataset file and a model, or the answers of a server (--generation_engine server).
    Writes  output_dir/generated_datasets.json (.arrow for an Arrow dataset), and with --top_logprobs
            api_completions.jsonl. A killed run continues where it stopped.

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
        "What generates. hf: PyTorch. ctranslate2: CTranslate2, which converts the model once. auto: ctranslate2 "
        "for beam search if it is installed and supports the model, else hf. server: the model at --server_url; "
        "--model_name is its tokenizer.",
        DECODING,
        choices=("hf", "ctranslate2", "auto", "server"),
    )
    server_url: str | None = flag(
        None,
        "URL of a server with the OpenAI-compatible completions API, for example http://localhost:8000/v1. A key is "
        "read from the environment variable KD_SERVER_KEY.",
        MODEL,
    )
    server_model: str | None = flag(None, "The server's name of the model. None means its only model.", MODEL)
    server_concurrency: int = flag(16, "Number of inputs that the server works on at a time.", RUN, minimum=1)
    top_logprobs: int | None = flag(
        None,
        "Most likely tokens whose log-probabilities a server's answers keep, in api_completions.jsonl for "
        "prepare_datasets_main.py --logits_dataset_path. None keeps none.",
        DECODING,
        minimum=1,
    )

    def check(self) -> None:
        super().check()
        self.check_writing("num_return_sequences", self.num_return_sequences)
        self._check_server()
        if self.generation_engine != "ctranslate2":
            return
        if self.generation_type not in CTRANSLATE2_TYPES:
            possible = " ".join(CTRANSLATE2_TYPES)
            raise UserError(
                f"--generation_engine ctranslate2: does not support {self.generation_type}; possible: {possible}"
            )
        if find_spec("ctranslate2") is None:
            raise UserError("--generation_engine ctranslate2: is not installed; run pip install ctranslate2, or use hf")

    def _check_server(self) -> None:
        """Raise a UserError for flags of a server without one, or that a server cannot follow."""
        if self.generation_engine != "server":
            for name in ("server_url", "server_model", "top_logprobs"):
                if getattr(self, name) is not None:
                    hint = "; simulate_api_main.py writes those of a local model" if name == "top_logprobs" else ""
                    raise UserError(f"--{name}: is only for --generation_engine server{hint}")
            return
        check_url(str(self.server_url))
        if self.generation_type not in SAMPLING_TYPES and self.num_beams > 1:
            raise UserError(
                f"--generation_engine server: no server has {self.generation_type} with --num_beams {self.num_beams}; "
                f"possible: --generation_type {' '.join(SAMPLING_TYPES)}, or --num_beams 1 for greedy search"
            )
        if self.checkpoint_path is not None or self.mixed_precision != "no":
            raise UserError(
                "--generation_engine server: weights and number format are the server's choice; remove "
                "--checkpoint_path and --mixed_precision"
            )


def check_url(url: str) -> None:
    """Raise a UserError if this is not the URL of a server, or holds a key, which run.json would show."""
    try:
        parts = urlsplit(url)
        is_written = url.isascii() and url.isprintable() and " " not in url
        is_complete = is_written and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete:
        raise UserError(f"--server_url {url}: is not a URL such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise UserError(
            "--server_url: holds more than host and path; put a key in the environment variable KD_SERVER_KEY"
        )


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

    split_for_generation: tuple[str, ...] | None = flag(None, "Splits to complete. None means all but dev_ppl.", DATA)
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
        choices=("published", "chat", "jsonl"),
    )

    def check(self) -> None:
        super().check()
        if self.generation_type == "greedy" and self.n_completions > 1:
            raise UserError(
                f"--n_completions {self.n_completions}: greedy writes the same completion every time; use sampling"
            )
        self.check_writing("n_completions", self.n_completions)
