"""Losses over the vocabulary, computed a few rows at a time, with their gradients in the same pass.

The logits of all positions never exist at once, nor their gradients: a chunk's gradient goes on to the hidden rows and
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

FLOAT16_TOP = 2.0**15  # a chunk's largest gradient is scaled to this; float16 ends at 65,504
TeacherLogits = LazyLogits | TopK | None  # a live teacher's logits (N, V), stored log-probabilities (N, K), no teacher


@dataclass(frozen=True)
class TokenLoss:
    """A loss of each valid target position, and how to sum it: factor · Σ weights · compute(…).

    compute: (student's logits (C, V), the teacher's or what is stored of it, labels (C,)) → (C,). weights: (N,).
    fused: "nll" (with `label_smoothing`) or "kl" (at `temperature`) if `nll_and_kl_` computes this loss, None for any
    other.
    """

    compute: Callable[[Tensor, Tensor | TopK | None, Tensor], Tensor]
    weights: Tensor
    factor: float = 1.0
    fused: str | None = None
    temperature: float = 1.0
    label_smoothing: float = 0.0


def weighted_sum(
    student: LazyLogits, teacher: TeacherLogits, labels: Tensor, losses: Sequence[TokenLoss]
) -> tuple[Tensor, Tensor]:
    """The sum of the losses with their factors, and each loss without its factor (n,).

    labels: (N,). The sum can be differentiated once. Value and gradients equal those of all rows at once.
    """
    projection = student.projection or OutputProjection(student.rows.new_empty(0))
    pass_ = _Pass(student.detached().cast(), _cut_to(student.vocab_size, teacher), labels, tuple(losses))
    return _WeightedSum.apply(  # type: ignore[no-untyped-call]
        student.rows, projection.weight, projection.bias, pass_, torch.is_grad_enabled()
    )


class _WeightedSum(torch.autograd.Function):
    """Computes the gradients of rows (N, D), weight (V, D) and bias (V,) in the forward pass; backward scales them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, pass_: "_Pass", wanted: bool) -> Any:
        exact = torch.promote_types(rows.dtype, torch.float32)
        gradients = [
            None if each is None or not (needed and wanted) else torch.zeros_like(each, dtype=exact)
            for each, needed in zip((rows, weight, bias), ctx.needs_input_grad, strict=False)
        ]
        sums = pass_.run(gradients, rows.new_zeros(len(pass_.losses), dtype=exact))
        total = sum((loss.factor * value for loss, value in zip(pass_.losses, sums, strict=True)), sums.new_zeros(()))
        ctx.gradients = gradients
        ctx.mark_non_differentiable(sums)
        return total, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _sums: Tensor) -> tuple[Tensor | None, ...]:
        return (*(each if each is None else each * upstream for each in ctx.gradients), None, None)


@dataclass(frozen=True)
class _Pass:
    """One pass over the vocabulary (`weighted_sum`), itself without gradient; the student's logits are cast."""

    student: LazyLogits
    teacher: TeacherLogits
    labels: Tensor
    losses: tuple[TokenLoss, ...]

    def run(self, gradients: list[Tensor | None], sums: Tensor) -> Tensor:
        """Add to `gradients` of rows, weight and bias, and to the losses' `sums` (n,)."""
        factors = torch.stack([loss.factor * loss.weights for loss in self.losses])  # (n, N)
        buffers = self._buffers(sums.dtype) if self._can_fuse() else None
        with_gradient = any(each is not None for each in gradients)
        for part in self.student.chunks():
            if buffers is None:
                values, gradient = self._by_autograd(part, factors[:, part], with_gradient)
            else:
                values, gradient = self._fused(part, factors[:, part], with_gradient, buffers)
            sums += torch.stack(
                [(row * loss.weights[part]).sum() for row, loss in zip(values, self.losses, strict=True)]
            )
            if gradient is not None:
                self._add(part, gradient, *gradients)
        return sums

    def _can_fuse(self) -> bool:
        """Whether `nll_and_kl_` computes all losses; it does no soft cap, and no teacher with a smaller vocabulary."""
        if self.student.projection is not None and self.student.projection.soft_cap is not None:
            return False
        is_live = isinstance(self.teacher, LazyLogits) and self.teacher.vocab_size == self.student.vocab_size
        return all(loss.fused == "nll" or (loss.fused == "kl" and is_live) for loss in self.losses)

    def _buffers(self, dtype: torch.dtype) -> list[Tensor]:
        """Memory (C, V) that all chunks of a fused pass share; allocating it anew costs as much time as the math."""
        size = (min(self.student.rows_at_once, len(self.student)), self.student.vocab_size)
        n_needed = 3 if any(loss.fused == "kl" for loss in self.losses) else 1
        return [torch.empty(size, dtype=dtype, device=self.labels.device) for _ in range(n_needed)]

    def _fused(
        self, part: slice, factors: Tensor, with_gradient: bool, buffers: list[Tensor]
    ) -> tuple[list[Tensor], Tensor | None]:
        """As `_by_autograd`, by `nll_and_kl_`."""
        weights = {str(loss.fused): factor for loss, factor in zip(self.losses, factors, strict=True)}
        temperature = next((loss.temperature for loss in self.losses if loss.fused == "kl"), 1.0)
        smoothing = sum(loss.label_smoothing for loss in self.losses if loss.fused == "nll")
        buffers = [buffer[: part.stop - part.start] for buffer in buffers]
        logits = self.student.some_before_cap(part, buffers[0])
        teacher, scratch = None, None
        if "kl" in weights and isinstance(self.teacher, LazyLogits):
            teacher, scratch = self.teacher.some(part, buffers[1]), buffers[2]
        values, gradient = nll_and_kl_(
            logits, teacher, self.labels[part], weights, temperature, smoothing,
            scratch=scratch, with_gradient=with_gradient,
        )  # fmt: skip
        return [values[str(loss.fused)] for loss in self.losses], gradient

    def _by_autograd(self, part: slice, factors: Tensor, with_gradient: bool) -> tuple[Sequence[Tensor], Tensor | None]:
        """Each loss of a chunk's rows (C,), and the gradient (C, V) of their sum, weighted by factors (n, C), with
        respect to the logits before a soft cap."""
        projection, teacher = self.student.projection, self.teacher
        logits = self.student.some_before_cap(part)
        if isinstance(teacher, TopK):
            taught: Tensor | TopK | None = TopK(teacher.ids[part], teacher.logs[part])
        else:
            taught = None if teacher is None else teacher.some(part)
        with torch.set_grad_enabled(with_gradient):
            logits.requires_grad_(with_gradient)
            capped = logits if projection is None else projection.capped(logits)
            values = [loss.compute(capped, taught, self.labels[part]) for loss in self.losses]
            if not with_gradient:
                return values, None
            total = torch.stack([(row * factor).sum() for row, factor in zip(values, factors, strict=True)]).sum()
        return [row.detach() for row in values], torch.autograd.grad(total, logits)[0]

    def _add(
        self, part: slice, gradient: Tensor, rows: Tensor | None, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        """Pass the gradient (C, V) of a chunk's logits on to rows, weight and bias; None: it is not wanted."""
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
        """Scale the gradient to float16's range before the products, and sum in float32; OVERWRITES the gradient.

        The loss scale comes only in `backward`, too late to prevent an overflow or underflow here.
        """
        assert self.student.projection is not None
        scale = torch.linalg.vector_norm(gradient, torch.inf).clamp_min(1e-30) / FLOAT16_TOP
        cast = gradient.div_(scale).half()
        if rows is not None:
            rows[part] = _in_float32(cast, self.student.projection.weight).mul_(scale)
        if weight is not None:
            weight += _in_float32(cast.T, self.student.rows[part]).mul_(scale)


def _in_float32(a: Tensor, b: Tensor) -> Tensor:
    """The product of two float16 matrices, summed and returned in float32."""
    if a.is_cuda and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def _cut_to(vocab_size: int, teacher: TeacherLogits) -> TeacherLogits:
    """A live teacher's logits, without gradient and cast, of no more tokens than the student's vocabulary has."""
    if not isinstance(teacher, LazyLogits):
        return teacher
    return (teacher.first_tokens(vocab_size) if teacher.vocab_size > vocab_size else teacher).detached().cast()
