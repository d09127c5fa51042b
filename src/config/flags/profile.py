"""Flags of profile_main.py."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from src.config.errors import UserError
from src.config.flags.base import DATA, DECODING, FILES, MODEL, PRUNE_HELP, REQUIRED, RUN, Arguments, flag


@dataclass(frozen=True, kw_only=True)
class ProfileArguments(Arguments):
    r"""Measure models: parameters, FLOPs, latency, memory and throughput, for each combination of the lists.

    Reads   models; no data, because the inputs are random tokens.
    Writes  a table as CSV and JSON, an entry at a time. The same command continues a profile that was interrupted.

    Examples:
      python profile_main.py --model_name t5-large t5-small t5-large_prune0_12_23:0_23 --output_file_path profile.json
      python profile_main.py --model_name outputs/student/model --batch_size 1 8 --input_length 48 480 --num_beams 1 4 \
        --find_maximal_batch_size --maximum_memory 16000 --device cuda --output_file_path outputs/profile.csv
    """

    script: ClassVar[str] = "profile_main.py"

    output_file_path: str = flag(
        REQUIRED, "File for the results, .csv or .json; the other form is written beside it.", FILES
    )
    model_name: tuple[str, ...] = flag(
        REQUIRED, f"Models: hub names, model or adapter folders, or GGUF files. {PRUNE_HELP}", MODEL
    )
    enc_layers_to_keep: tuple[int, ...] | None = flag(
        None, "Encoder layers to keep of every model: from 0, or from -1 backwards. None means all.", MODEL
    )
    dec_layers_to_keep: tuple[int, ...] | None = flag(
        None, "Decoder layers to keep of every model: from 0, or from -1 backwards. None means all.", MODEL
    )
    batch_size: tuple[int, ...] = flag((1,), "Batch sizes: numbers of inputs that are read together.", DATA, minimum=1)
    input_length: tuple[int, ...] = flag((128,), "Lengths of the inputs, in tokens.", DATA, minimum=1)
    target_length: tuple[int, ...] = flag((32,), "Lengths of the targets, in tokens.", DATA, minimum=1)
    paired_lengths: bool = flag(
        False,
        "Pair the first --input_length with the first --target_length, and so on. False combines each with each.",
        DATA,
    )
    num_beams: tuple[int, ...] = flag((1,), "Numbers of beams; 1 means greedy search.", DECODING, minimum=1)
    n_calls: int = flag(
        100,
        "Timed calls of a measurement. At the largest batch there are as many as read so many inputs, at least 3.",
        RUN,
        minimum=1,
    )
    warmup_calls: int = flag(10, "Calls before the timed ones; at most 1 at the largest batch.", RUN, minimum=0)
    device: str = flag("cpu", "cpu, cuda, or the number of a GPU.", RUN)
    find_maximal_batch_size: bool = flag(
        False, "Also find the largest batch for which generation fits into memory, and measure it.", RUN
    )
    maximum_memory: int | None = flag(
        None, "Memory that weights and a batch may take, in MB. None means what is free.", RUN, minimum=1
    )
    overwrite: bool = flag(False, "Measure everything again and replace what the file holds.", RUN)

    def check(self) -> None:
        super().check()
        if Path(self.output_file_path).suffix not in (".csv", ".json"):
            raise UserError(f"--output_file_path {self.output_file_path}: must end in .csv or .json")
        if not re.fullmatch(r"cpu|cuda(:\d+)?|\d+", self.device):
            raise UserError(f"--device {self.device}: is neither cpu, cuda, nor the number of a GPU")
        n_inputs, n_targets = len(self.input_length), len(self.target_length)
        if self.paired_lengths and n_inputs != n_targets:
            raise UserError(f"--paired_lengths: {n_inputs} input lengths do not pair with {n_targets} target lengths")
