"""Losses over the vocabulary, a few rows at a time, each with its gradient in the same pass.

Neither logits nor gradients of them exist for all positions at once: a chunk's gradient goes on to the hidden rows and
the projection's weight before the next chunk is computed.
Shapes: N valid target positions, C of them at once, V vocabulary, D width, K stored tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from src.distillation.fused_losses import nll_and_kl_
from src.models.lazy_logits import LazyLogits, OutputProjection
from src.tokens.batch import TopK

FLOAT16_UNIT = 2.0**15  # what a chunk's largest gradient becomes in float16, whose numbers end at 65,504
TeacherLogits = LazyLogits | TopK | None  # a live teacher's scores, what is stored of one, (N, K), or no teacher
RowLoss = Callable[[Tensor, Tensor | TopK | None, Tensor], Tensor]


@dataclass(frozen=True)
class RowTerm:
    """A term that is a weighed sum over the valid target positions of a loss of their rows of the vocabulary.

    loss: (student's logits (C, V), the teacher's or what is stored of it, labels (C,)) → (C,). per_row: (N,) what each
    position counts for in the term. factor: what the term counts for in the total. fused: the part of `nll_and_kl_`
    that it is, "nll" or "kl", at `temperature`; None for any other.
    """

    loss: RowLoss
    per_row: Tensor
    factor: float = 1.0
    fused: str | None = None
    temperature: float = 1.0


def weighted_sum(
    student: LazyLogits, teacher: TeacherLogits, labels: Tensor, terms: Sequence[RowTerm]
) -> tuple[Tensor, Tensor]:
    """Σ factor · term, which can be differentiated once, and the terms (n,) themselves.

    Equal to what the terms' losses give on all rows at once, and so are its gradients. labels: (N,).
    """
    projection = student.projection or OutputProjection(student.rows.new_empty(0))
    pass_ = _Pass(student.detached().cast(), _of_size(teacher, student.vocab_size), labels, tuple(terms))
    return _WeightedSum.apply(  # type: ignore[no-untyped-call]
        student.rows, projection.weight, projection.bias, pass_, torch.is_grad_enabled()
    )


class _WeightedSum(torch.autograd.Function):
    """The gradients of rows (N, D), weight (V, D) and bias (V,) are known when the forward pass ends."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, pass_: "_Pass", wanted: bool) -> Any:
        exact = torch.promote_types(rows.dtype, torch.float32)
        gradients = [
            None if each is None or not (needed and wanted) else torch.zeros_like(each, dtype=exact)
            for each, needed in zip((rows, weight, bias), ctx.needs_input_grad, strict=False)
        ]
        sums = pass_.run(gradients, rows.new_zeros(len(pass_.terms), dtype=exact))
        total = sum((term.factor * value for term, value in zip(pass_.terms, sums, strict=True)), sums.new_zeros(()))
        ctx.gradients = gradients
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _sums: Tensor) -> tuple[Tensor | None, ...]:
        return (*(each if each is None else each * upstream for each in ctx.gradients), None, None)


@dataclass(frozen=True)
class _Pass:
    """One pass over the vocabulary, without gradient: see `weighted_sum`; the student's scores are cast."""

    student: LazyLogits
    teacher: TeacherLogits
    labels: Tensor
    terms: tuple[RowTerm, ...]

    def run(self, gradients: list[Tensor | None], sums: Tensor) -> Tensor:
        """Add to `gradients` of rows, weight and bias, and to `sums` (n,) of the terms."""
        student = self.student
        factors = torch.stack([term.factor * term.per_row for term in self.terms])  # (n, N)
        memory = self._memory(sums.dtype) if self._can_fuse() else None
        for part in student.chunks():
            losses, gradient = self._chunk(part, factors[:, part], any(g is not None for g in gradients), memory)
            means = [(row * term.per_row[part]).sum() for row, term in zip(losses, self.terms, strict=True)]
            sums += torch.stack(means)
            if gradient is not None:
                self._add(part, gradient, *gradients)
        return sums

    def _memory(self, dtype: torch.dtype) -> list[Tensor]:
        """What a fused pass needs for all its chunks, (C, V) each: memory that is new in each costs as much time as the
        arithmetic."""
        size = (min(self.student.rows_at_once, len(self.student)), self.student.vocab_size)
        n_needed = 3 if any(term.fused == "kl" for term in self.terms) else 1
        return [torch.empty(size, dtype=dtype, device=self.labels.device) for _ in range(n_needed)]

    def _chunk(
        self, part: slice, factors: Tensor, with_gradient: bool, memory: list[Tensor] | None
    ) -> tuple[Sequence[Tensor], Tensor | None]:
        """Each term's losses (C,), and the gradient (C, V) of their sum, weighed by factors (n, C), to the logits
        before any cap."""
        if memory is not None:
            return self._fused(part, factors, with_gradient, [each[: part.stop - part.start] for each in memory])
        labels, projection = self.labels[part], self.student.projection
        logits, teacher = self.student.some_before_cap(part), self._taught(part)
        with torch.set_grad_enabled(with_gradient):
            logits.requires_grad_(with_gradient)
            capped = logits if projection is None else projection.capped(logits)
            losses = [term.loss(capped, teacher, labels) for term in self.terms]
            if not with_gradient:
                return losses, None
            total = torch.stack([(row * factor).sum() for row, factor in zip(losses, factors, strict=True)]).sum()
        return [row.detach() for row in losses], torch.autograd.grad(total, logits)[0]

    def _fused(
        self, part: slice, factors: Tensor, with_gradient: bool, memory: list[Tensor]
    ) -> tuple[list[Tensor], Tensor | None]:
        weights = {str(term.fused): factor for term, factor in zip(self.terms, factors, strict=True)}
        temperature = next((term.temperature for term in self.terms if term.fused == "kl"), 1.0)
        logits = self.student.some_before_cap(part, memory[0])
        teacher, scratch = None, None
        if "kl" in weights and isinstance(self.teacher, LazyLogits):
            teacher, scratch = self.teacher.some(part, memory[1]), memory[2]
        losses, gradient = nll_and_kl_(
            logits, teacher, self.labels[part], weights, temperature, scratch=scratch, with_gradient=with_gradient
        )
        return [losses[str(term.fused)] for term in self.terms], gradient

    def _taught(self, part: slice) -> Tensor | TopK | None:
        if isinstance(self.teacher, TopK):
            return TopK(self.teacher.ids[part], self.teacher.logs[part])
        return None if self.teacher is None else self.teacher.some(part)

    def _can_fuse(self) -> bool:
        """Whether all terms have a fused form; with a teacher of a smaller vocabulary the KL has none."""
        if self.student.projection is not None and self.student.projection.soft_cap is not None:
            return False
        is_live = isinstance(self.teacher, LazyLogits) and self.teacher.vocab_size == self.student.vocab_size
        return all(term.fused == "nll" or (term.fused == "kl" and is_live) for term in self.terms)

    def _add(
        self, part: slice, gradient: Tensor, rows: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        """Hand the gradient (C, V) of a chunk's logits on to the rows and to the projection."""
        projection = self.student.projection
        if projection is None:
            if rows is not None:
                rows[part] = gradient
            return
        if bias is not None:
            bias += gradient.sum(dim=0)
        if self.student.rows.dtype == torch.float16:
            self._add_in_float16(part, gradient, rows, weight)
        else:
            cast = gradient.to(self.student.rows.dtype)
            if rows is not None:
                rows[part] = cast @ projection.weight
            if weight is not None:
                if cast.dtype == weight.dtype:
                    weight.addmm_(cast.T, self.student.rows[part])
                else:
                    weight += cast.T @ self.student.rows[part]

    def _add_in_float16(self, part: slice, gradient: Tensor, rows: Tensor | None, weight: Tensor | None) -> None:
        """As in other formats, but in the unit that float16 has most room for, and summed in float32; the gradient is
        OVERWRITTEN.

        The loss scale comes later, in `backward`: it could mend neither an overflow here nor an underflow.
        """
        assert self.student.projection is not None
        unit = torch.linalg.vector_norm(gradient, torch.inf).clamp_min(1e-30) / FLOAT16_UNIT
        cast = gradient.div_(unit).half()
        if rows is not None:
            rows[part] = _in_float32(cast, self.student.projection.weight).mul_(unit)
        if weight is not None:
            weight += _in_float32(cast.T, self.student.rows[part]).mul_(unit)


def _in_float32(a: Tensor, b: Tensor) -> Tensor:
    """The product of two float16 matrices, summed and returned in float32."""
    if a.is_cuda and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _of_size(teacher: TeacherLogits, vocab_size: int) -> TeacherLogits:
    """A live teacher's scores without gradient, cast, of the student's vocabulary where its own is larger."""
    if not isinstance(teacher, LazyLogits):
        return teacher
    return (teacher.first_tokens(vocab_size) if teacher.vocab_size > vocab_size else teacher).detached().cast()
