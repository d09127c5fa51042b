"""Compare our objectives with values and gradients that were recorded from the published suite.

A folder holds `golden.json`, {"cases": [...]}, and the models it names: `<family>_student` and `<family>_teacher`. A
case has `config` (the keys of a loss entry and a layer map), `batch`, `loss_scales` (or null), and the recorded `loss`,
`items` (unscaled terms, `<term>_loss`) and `grad_l2` (gradient norm of each parameter).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from src.config.experiments.load import LAYERS, LOSS, keys_by_kind
from src.config.experiments.schema import LayerMap, LossEntry
from src.distillation.capture import capture_states
from src.distillation.objectives import Window, distillation_loss
from src.distillation.teachers import LiveTeacher
from src.models.loading import load_model
from src.tokens.batch import Batch

VALUE_TOLERANCE = 1e-5
GRADIENT_TOLERANCE, GRADIENT_SHARE = 1e-6, 1e-3  # absolute, and relative to the recorded norm


@dataclass(frozen=True)
class Deviation:
    """How far a number is from the recorded one, and how far it may be."""

    case: str
    what: str
    recorded: float
    ours: float
    allowed: float

    @property
    def excess(self) -> float:
        """The distance as a multiple of the allowed one; at most 1 is fine, NaN is not."""
        return abs(self.ours - self.recorded) / self.allowed

    @property
    def is_off(self) -> bool:
        return not self.excess <= 1

    def __str__(self) -> str:
        return (
            f"{self.case}: {self.what}: recorded {self.recorded:.8g}, ours {self.ours:.8g}, "
            f"distance {abs(self.ours - self.recorded):.1e} of {self.allowed:.1e} allowed"
        )


def read_cases(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "golden.json").read_text(encoding="utf-8"))["cases"]


@lru_cache
def models_of(folder: Path, family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """(student, teacher) of a family, in eval mode: the recorded values have no dropout."""
    student, teacher = (load_model(str(folder / f"{family}_{role}")) for role in ("student", "teacher"))
    return student, teacher


def deviations(folder: Path, case: dict[str, Any]) -> Iterator[Deviation]:
    """Every recorded number of a case against ours: the loss, its terms, each student parameter's gradient norm."""
    name = f"{case['family']} {case['name']}"
    student, teacher = models_of(folder, case["family"])
    config = case["config"]
    keys = [key for key in keys_by_kind()[LOSS] if config.get(key) is not None]
    entry = LossEntry(name=case["name"], **{key: config[key] for key in keys})
    layers = LayerMap(**{key: config[key] for key in keys_by_kind()[LAYERS] if key in config})
    tensors = {key: torch.tensor(rows) for key, rows in case["batch"].items()}
    batch = Batch(**tensors, rows=tuple(range(len(tensors["labels"]))))
    window = Window(len(batch.rows), len(batch.valid))

    student.zero_grad()
    states = capture_states(student, batch, entry, layers.of("student"))
    taught = LiveTeacher(teacher, layers.of("teacher"))(batch, entry)
    loss, terms = distillation_loss(states, taught, batch, entry, window, _scales(case))
    loss.backward()

    ours = {"loss": loss.item()} | {f"{term}_loss": value.item() for term, value in terms.items()}
    recorded = {"loss": case["loss"]} | case["items"]
    for what in sorted(recorded.keys() | ours.keys()):
        yield Deviation(name, what, _number(recorded, what), _number(ours, what), VALUE_TOLERANCE)
    gradients = {key: parameter.grad for key, parameter in student.named_parameters()}
    norms = {key: 0.0 if gradient is None else gradient.norm().item() for key, gradient in gradients.items()}
    untouched = dict.fromkeys(norms, 0.0)  # parameters that a loss does not reach may be left out of the record
    for what, norm in sorted((untouched | case["grad_l2"]).items()):
        allowed = GRADIENT_TOLERANCE + GRADIENT_SHARE * abs(norm)
        yield Deviation(name, f"gradient of {what}", norm, _number(norms, what), allowed)


def _scales(case: dict[str, Any]) -> dict[str, float]:
    return {item.removesuffix("_loss"): scale for item, scale in (case["loss_scales"] or {}).items()}


def _number(numbers: dict[str, float], key: str) -> float:
    """NaN for what one side lacks, which is off by any measure."""
    return numbers.get(key, float("nan"))
