"""Implementations of one optimizer update. Each takes a row's work and returns a step; a step returns its tokens.

Shapes: B rows, T positions, V vocabulary.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the usual abbreviation)
from transformers import PreTrainedModel

from benchmarks.speed.models import PAD, Pairs, batch_of, build
from benchmarks.speed.rows import Learning
from src.config.constants import IGNORE_INDEX
from src.config.experiments.schema import LossEntry
from src.distillation.capture import capture_states
from src.distillation.objectives import Window, distillation_loss
from src.distillation.teachers import LiveTeacher
from src.models.compiled import compile_layers
from src.models.loading import fuse_gelu
from src.tokens.batch import Batch

Inputs = dict[str, Tensor]
Step = Callable[[], int]
LEARNING_RATE = 3e-4
CPU = torch.device("cpu")


def entry_of(work: Learning) -> LossEntry:
    return LossEntry(name="bench", forward_weight=work.forward_weight, logits_weight=work.logits_weight)


def students_and_teachers(work: Learning) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """The student and the teacher, with the same weights for every implementation."""
    student = build(work.family, work.vocabulary, work.student, dropout=work.dropout, seed=1)
    if work.teacher is None:
        return student, None
    return student, build(work.family, work.vocabulary, work.teacher, dropout=work.dropout, seed=2)


def n_tokens(batch: Batch) -> int:
    """Valid target tokens: labels that are not padding."""
    return int((batch.labels != IGNORE_INDEX).sum())


# --------------------------------------------------------------------------------------------------------------- ours


def ours(
    work: Learning,
    device: torch.device,
    scratch: Path,
    pairs: Pairs = (),
    *,
    precision: str = "no",
    compiled: bool = False,
) -> Step:
    """An update of one micro-batch, as in `src/training/engine.py`."""
    update = updater(work, device, precision=precision, compiled=compiled)
    return partial(update, batch_of(work, pairs).to(device))


def updater(
    work: Learning,
    device: torch.device = CPU,
    *,
    precision: str = "no",
    compiled: bool = False,
) -> Callable[[Batch], int]:
    """`update_with` for the models of a row."""
    student, teacher = students_and_teachers(work)
    return update_with(student, teacher, entry_of(work), device, precision=precision, compiled=compiled)


def update_with(
    student: PreTrainedModel,
    teacher: PreTrainedModel | None,
    entry: LossEntry,
    device: torch.device,
    *,
    precision: str = "no",
    compiled: bool = False,
) -> Callable[[Batch], int]:
    """A function that runs one update on a batch, as the engine does, and returns its tokens."""
    from accelerate import Accelerator

    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    student, teacher = (model and fuse_gelu(model) for model in (student, teacher))
    if compiled:
        student, teacher = compile_layers(student), teacher and compile_layers(teacher)
    taught_by = None if teacher is None else LiveTeacher(teacher.to(device), {})
    student = accelerator.prepare(student.train())
    optimizer = accelerator.prepare(torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, fused=True))

    def update(batch: Batch) -> int:
        window = Window(len(batch.rows), len(batch.valid))
        states = capture_states(student, batch, entry, {})
        with accelerator.autocast():
            taught = taught_by(batch, entry) if taught_by else None
        loss, _ = distillation_loss(states, taught, batch, entry, window)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return window.tokens

    return update


# ---------------------------------------------------------------------------------------------------------- textbook


def plain_inputs(batch: Batch, *, is_encoder_decoder: bool) -> Inputs:
    """The batch in the form of stock models: (B, T) labels beside the inputs, or both in one sequence."""
    if is_encoder_decoder:
        return {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
    columns: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
        context, target = ids[mask.bool()], labels[labels != IGNORE_INDEX]
        columns["input_ids"].append(torch.cat([context, target]))
        columns["attention_mask"].append(torch.ones_like(columns["input_ids"][-1]))
        columns["labels"].append(torch.cat([torch.full_like(context, IGNORE_INDEX), target]))
    padding = {"input_ids": PAD, "attention_mask": 0, "labels": IGNORE_INDEX}
    return {
        name: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding[name])
        for name, rows in columns.items()
    }


def textbook_loss(student: PreTrainedModel, teacher: PreTrainedModel, inputs: Inputs, entry: LossEntry) -> Tensor:
    """Cross-entropy of the labels and KL(teacher ‖ student) on full (B, T, V) logits, masked.

    The KL is averaged over the tokens of a target, then over targets, as in `distillation_loss`, so that both
    implementations compute the same loss.
    """
    labels = inputs["labels"]
    read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    if student.config.is_encoder_decoder:
        read["decoder_input_ids"] = student.prepare_decoder_input_ids_from_labels(labels)
    output = student(**read, labels=labels if entry.forward_weight else None, use_cache=False)
    with torch.no_grad():
        taught = teacher(**read, use_cache=False).logits
    logits = output.logits
    if not student.config.is_encoder_decoder:
        logits, taught, labels = logits[:, :-1], taught[:, :-1], labels[:, 1:]
    mask = labels != IGNORE_INDEX
    kl = F.kl_div(F.log_softmax(logits, dim=-1), F.softmax(taught, dim=-1), reduction="none").sum(dim=-1) * mask
    loss = entry.logits_weight * (kl.sum(dim=1) / mask.sum(dim=1)).mean()
    return loss + entry.forward_weight * output.loss if entry.forward_weight else loss


def textbook(work: Learning, device: torch.device, scratch: Path, pairs: Pairs = ()) -> Step:
    """Plain PyTorch and transformers with full logits."""
    return _dense_step(work, device, pairs, partial(textbook_loss, entry=entry_of(work)))


# ----------------------------------------------------------------------------------------------------------------- TRL


def trl_loss(student: PreTrainedModel, teacher: PreTrainedModel, inputs: Inputs) -> Tensor:
    """`GKDTrainer.compute_loss` of TRL with β = 0: KL(teacher ‖ student), mean over all tokens of the batch."""
    from trl.experimental.gkd import GKDTrainer

    trainer = SimpleNamespace(teacher_model=teacher, beta=0, generalized_jsd_loss=GKDTrainer.generalized_jsd_loss)
    return GKDTrainer.compute_loss(trainer, student, inputs)


def trl(work: Learning, device: torch.device, scratch: Path, pairs: Pairs = ()) -> Step:
    assert not work.forward_weight, "TRL's loss has no NLL term"
    return _dense_step(work, device, pairs, trl_loss)


def _dense_step(
    work: Learning,
    device: torch.device,
    pairs: Pairs,
    compute_loss: Callable[[PreTrainedModel, PreTrainedModel, Inputs], Tensor],
) -> Step:
    student, teacher = students_and_teachers(work)
    assert teacher is not None
    return dense_step_with(student, teacher, batch_of(work, pairs), compute_loss, device)


def dense_step_with(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batch: Batch,
    compute_loss: Callable[[PreTrainedModel, PreTrainedModel, Inputs], Tensor],
    device: torch.device,
) -> Step:
    """An update with full logits on a batch."""
    student, teacher = student.to(device).train(), teacher.to(device).eval().requires_grad_(False)
    batch = batch.to(device)
    inputs = plain_inputs(batch, is_encoder_decoder=student.config.is_encoder_decoder)
    tokens = n_tokens(batch)
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, fused=True)

    def step() -> int:
        compute_loss(student, teacher, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()
        return tokens

    return step


# ----------------------------------------------------------------------------------------------------- Seq2SeqTrainer


def trainer(work: Learning, device: torch.device, scratch: Path, pairs: Pairs = ()) -> Step:
    """A fine-tuning step of transformers' `Seq2SeqTrainer`."""
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

    student, _ = students_and_teachers(work)
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(scratch / "trainer"),
        per_device_train_batch_size=work.rows,
        learning_rate=LEARNING_RATE,
        optim="adamw_torch_fused",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device.type == "cpu",
    )
    hf = Seq2SeqTrainer(model=student.to(device).train(), args=arguments)
    hf.create_optimizer_and_scheduler(num_training_steps=1_000)
    batch = batch_of(work, pairs).to(device)
    inputs = plain_inputs(batch, is_encoder_decoder=student.config.is_encoder_decoder)
    tokens = n_tokens(batch)

    def step() -> int:
        hf.training_step(hf.model, dict(inputs), num_items_in_batch=torch.tensor(tokens, device=device))
        hf.optimizer.step()
        hf.optimizer.zero_grad()
        return tokens

    return step


LEARNERS = {
    "ours": ours,
    "ours-bf16": partial(ours, precision="bf16"),
    "ours-compiled": partial(ours, compiled=True),
    "textbook": textbook,
    "trl": trl,
    "trainer": trainer,
}
