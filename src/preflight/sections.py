"""Lines of a dry run's report on the folder, model, data, memory and time, and how numbers are written there."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.console import say
from src.config.flags.shared import SharedArguments, TrainingArguments
from src.devices import memory as machine
from src.devices.accelerator import Accelerator
from src.preflight.estimates import Memory
from src.preflight.measure import ROWS
from src.runs.description import UNFINISHED
from src.runs.folder import RunFolder
from src.tokens.tokenized import TokenizedDatasets
from src.tokens.truncation import Lengths, percent

HEADER = ("split", "rows", "sample", "inputs: mean", "longest", "cut", "targets: mean", "longest", "cut", "empty")


def print_report(sections: Mapping[str, Sequence[str]]) -> None:
    """Print headings at the left, their lines beside them."""
    width = max(map(len, sections)) + 2
    lines = (f"{'' if i else name:<{width}}{line}" for name, each in sections.items() for i, line in enumerate(each))
    say("\n" + "\n".join(lines))


def state_of_folder(run: RunFolder, if_unfinished: str) -> str:
    """Whether the run is new, continues, or replaces another one."""
    if run.status == UNFINISHED:
        return f"{run.path}: {if_unfinished}"
    replaces = run.former is not None or run.files()
    return f"{run.path}: a new run" + ("; --overwrite True removes the former one" if replaces else "")


def describe_model(model: PreTrainedModel) -> str:
    """Model type, size, vocabulary and number format."""
    n = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    vocabulary = f"vocabulary of {model.config.get_text_config().vocab_size:,}"
    return f"{model.config.model_type}, {n:.2f} M parameters, {vocabulary}, {str(model.dtype).removeprefix('torch.')}"


def tokenizer_and_device(tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator) -> list[str]:
    passes = f", forward passes in {accelerator.mixed_precision}" if accelerator.native_amp else ""
    return [f"tokenizer of {len(tokenizer):,} tokens", f"on {machine.name_of(accelerator.device)}{passes}"]


def data_lines(data: TokenizedDatasets, rotations: Sequence[tuple[str, ...]]) -> list[str]:
    """A table of the first split of each rotation, and a line on the others."""
    table = [list(HEADER)]
    for split in dict.fromkeys(first for first, *_ in rotations):
        cuts = data.glimpse(split, ROWS).cuts
        of_targets = [*_cells(cuts.targets), f"{cuts.n_empty:,}"] if cuts.targets else [""] * 4
        table.append([split, f"{data.rows(split):,}", f"{cuts.inputs.n:,}", *_cells(cuts.inputs), *of_targets])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join([f"{row[0]:<{widths[0]}}", *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in table]
    for _, *others in rotations:
        if others:
            lines.append(f"not looked at: {plural(len(others), 'split')} of {span(list(map(data.rows, others)))} rows")
    unused = [split for split in data.datasets if not any(split in rotation for rotation in rotations)]
    lines += [f"not used: {', '.join(unused)}"] if unused else []
    return [*lines, "lengths in tokens, before truncation"]


def _cells(lengths: Lengths) -> list[str]:
    return [f"{lengths.mean:.1f}", f"{lengths.longest:,}", percent(lengths.share)]


def memory_lines(memory: Memory, config: SharedArguments, device: torch.device) -> list[str]:
    """The memory at the peak, whether it fits, what to try if not, and the parts of it that are known."""
    peak, available = size(memory.peak), size(memory.available)
    if memory.fits:
        first = f"about {peak} at the peak, of {available} that this run can have ({device})"
    else:
        more = "more than" if memory.ran_out else "about"
        first = f"does not fit: {more} {peak} at the peak, and this run can have {available} ({device}); try "
        first += ", ".join(_ways_to_take_less(memory, config, device))
    known = asdict(memory.needs)
    parts = {**known, "batches, program and data": max(0, memory.peak - sum(known.values()))}
    return [first, " + ".join(f"{name} {size(value)}" for name, value in parts.items() if value)]


def _ways_to_take_less(memory: Memory, config: SharedArguments, device: torch.device) -> list[str]:
    batches = "--max_gpu_batch_size" if isinstance(config, TrainingArguments) else "--batch_size"
    ways = [f"a smaller {batches}", "a smaller model"]
    if memory.needs.teacher and getattr(config, "teacher_dtype", "") == "fp32":
        ways.append("--teacher_dtype bf16")
    if isinstance(config, TrainingArguments) and not config.gradient_checkpointing:
        ways.append("--gradient_checkpointing True")
    if memory.needs.optimizer and isinstance(config, TrainingArguments) and config.optimizer == "adamw":
        ways.append("--optimizer adafactor")
    if config.mixed_precision == "no" and device.type == "cuda":
        ways.append("--mixed_precision bf16")
    return ways


def time_lines(parts: Sequence[tuple[int, str, float]]) -> list[str]:
    """The total time in hours, minutes and seconds, and that of each part: (how many, of what, seconds of one)."""
    total = sum(count * seconds for count, _, seconds in parts)
    each = (f"{plural(count, one)} of {s:,.3f} s: {duration(count * s)}" for count, one, s in parts if count)
    return [f"about {duration(total)}", *each]


def duration(seconds: float) -> str:
    """The time of a run: 3:20:00, or 2 days, 4:46:40."""
    return str(timedelta(seconds=round(seconds)))


def size(n_bytes: int) -> str:
    """Bytes in decimal units: 340kB, 2.45MB, 17.0GB."""
    return tqdm.format_sizeof(n_bytes, "B")


def span(values: Sequence[int]) -> str:
    """7,000, or 6,990 to 7,000."""
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def plural(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
