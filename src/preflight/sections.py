"""Sections that the reports of training and of generation share: output folder, model, data, smaller flags."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.config.errors import UserError
from src.config.flags.shared import SharedArguments, TrainingArguments
from src.devices import memory as machine
from src.devices.processes import Accelerator
from src.models.families import family_of, layer_counts
from src.preflight.estimates import Memory, smaller_micro_batch
from src.preflight.measure import ROWS
from src.preflight.words import SplitSample, listed, span, table_of_splits
from src.runs.description import UNFINISHED
from src.runs.folder import RunFolder
from src.tokens.tokenized import TokenizedDatasets


def state_of_folder(run: RunFolder, if_unfinished: str) -> str:
    """Whether the run is new, continues, or replaces another one."""
    if run.status == UNFINISHED:
        return f"{run.path}: {if_unfinished}"
    if run.former is not None or run.files():
        return f"{run.path}: a new run; what an earlier one has left there is removed (--overwrite True)"
    return f"{run.path}: a new run" + ("" if run.path.is_dir() else ", in a folder that will be made")


def describe_model(model: PreTrainedModel) -> str:
    """Family, size, layers, vocabulary and number format."""
    config = model.config
    n = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    try:
        family, counts = family_of(config).name, layer_counts(config)
        layers = " + ".join(str(count) for count in counts.values() if count)
    except UserError:  # one whose layers nobody has described here
        family, layers = config.model_type, str(getattr(config.get_text_config(), "num_hidden_layers", "unknown"))
    vocabulary = f"vocabulary of {config.get_text_config().vocab_size:,}"
    return f"{family}, {n:.2f} M parameters, {layers} layers, {vocabulary}, {str(model.dtype).removeprefix('torch.')}"


def tokenizer_and_device(tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator) -> list[str]:
    passes = f", forward passes in {accelerator.mixed_precision}" if accelerator.native_amp else ""
    return [f"tokenizer of {len(tokenizer):,} tokens", f"on {machine.name_of(accelerator.device)}{passes}"]


def data_lines(data: TokenizedDatasets, rotations: Sequence[tuple[str, ...]], config: SharedArguments) -> list[str]:
    """A table of the first split of each rotation, and a line on the others."""
    firsts = list(dict.fromkeys(first for first, *_ in rotations))
    samples = [SplitSample(first, data.rows(first), data.glimpse(first, ROWS).cuts) for first in firsts]
    lines = table_of_splits(samples)
    for _, *others in rotations:
        if others:
            rows = span([data.rows(split) for split in others])
            lines.append(f"not looked at: {listed(others)}, {rows} rows{' each' if len(others) > 1 else ''}")
    unused = [split for split in data.datasets if not any(split in rotation for rotation in rotations)]
    lines += [f"not used: {', '.join(unused)}"] if unused else []
    legend = f"lengths in tokens, before they are cut to --max_input_length {config.max_input_length}"
    if any(each.cuts.targets for each in samples):
        legend += f" and --max_labels_length {config.max_labels_length}"
    empty = any(each.cuts.n_empty for each in samples)
    return [*lines, legend, *(["empty: targets of which nothing but EOS is left"] if empty else [])]


def smaller_flags(config: SharedArguments, memory: Memory, device: torch.device) -> list[str]:
    """Flags that would take less memory."""
    flags = []
    if isinstance(config, TrainingArguments):
        micro = smaller_micro_batch(config.batch_size, config.micro_batch_size)
        flags += [f"--max_gpu_batch_size {micro}"] if micro else []
    elif config.batch_size > 1:
        flags.append(f"--batch_size {config.batch_size // 2}")
    if memory.needs.teacher and getattr(config, "teacher_dtype", "") == "fp32":
        flags.append("--teacher_dtype bf16")
    if config.mixed_precision == "no" and device.type == "cuda":
        flags.append("--mixed_precision bf16")
    return [*flags, "a smaller model"]
