"""Dataclasses for the entries of an experiments file: losses, layer maps, schedules, experiments; keys and limits."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from src.config.divergences import DIVERGENCES

LOSS, LAYERS, SCHEDULE, EXPERIMENT = "loss", "layer map", "schedule", "experiment"  # the kinds of entries
EXPERIMENT_KEYS = ("name", "layer", "scheduling", "losses")
TRIGGERS = ("change_every_n_epochs", "change_every_n_evaluation_steps", "change_no_improvements_for")


@dataclass(frozen=True, kw_only=True)
class LossEntry:
    """The weights of one loss, and the share of steps (0 to 1) on which the student generates the labels itself.

    generate_temperature, generate_top_p, generate_top_k: how the student samples those labels; top_k 0 means no limit.
    missing_mass: how tokens count whose probabilities a stored teacher does not have.
    """

    name: str
    forward_weight: float = 0.0
    logits_weight: float = 0.0
    hidden_weight: float = 0.0
    attention_relation_weight: float = 0.0
    temperature: float = 1.0
    kl_loss: bool = False
    loss_scale: bool = False
    dropout: bool = False
    generate_labels_weight: float = 0.0
    generate_temperature: float = 1.0
    generate_top_p: float = 0.95
    generate_top_k: int = 0
    missing_mass: str = "drop"
    divergences: tuple[tuple[str, float], ...] = ()  # (name, weight) of each divergence that has no field above

    @property
    def weights(self) -> dict[str, float]:
        """The weights that are not 0, by the name of the objective."""
        weights = {name: getattr(self, weight_key(name), 0.0) for name in objective_names()} | dict(self.divergences)
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def compares_layers(self) -> bool:
        """Whether the loss compares hidden states or attention."""
        return bool(self.weights.keys() & {"hidden", "attention_relation"})

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss compares the student with a teacher."""
        return any(term != "forward" for term in self.weights)


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """The layers to compare: hidden states, self-attention (sa), cross-attention (ca). -1 is the last layer."""

    student_enc_hidden_layer: int = -1
    teacher_enc_hidden_layer: int = -1
    student_dec_hidden_layer: int = -1
    teacher_dec_hidden_layer: int = -1
    student_enc_sa_layer: int = -1
    teacher_enc_sa_layer: int = -1
    student_dec_sa_layer: int = -1
    teacher_dec_sa_layer: int = -1
    student_dec_ca_layer: int = -1
    teacher_dec_ca_layer: int = -1

    def of(self, role: str) -> dict[str, int]:
        """The layers of "student" or "teacher" by enc_hidden, dec_hidden, enc_sa, dec_sa and dec_ca."""
        places = ("enc_hidden", "dec_hidden", "enc_sa", "dec_sa", "dec_ca")
        return {place: getattr(self, f"{role}_{place}_layer") for place in places}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When training changes to the next loss of the experiment. At most one of the TRIGGERS is given.

    keep_last: stay on the last loss; otherwise start again with the first. random_sample: draw the next loss at random.
    change_every_n_epochs may be the text n_patience_epochs or epochs_per_loss until `load_experiment` knows the number.
    """

    name: str
    change_every_n_epochs: int | str | None = None
    change_every_n_evaluation_steps: int | None = None
    change_no_improvements_for: int | None = None
    keep_last: bool = True
    random_sample: bool = False

    @property
    def triggers(self) -> list[str]:
        """Those of the TRIGGERS that are given."""
        return [name for name in TRIGGERS if getattr(self, name) is not None]

    @property
    def follows_evaluations(self) -> bool:
        """Whether the schedule counts evaluations on dev."""
        return self.change_every_n_evaluation_steps is not None or self.change_no_improvements_for is not None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment with its layer map, its schedule, and its losses in the order of their use."""

    key: str
    name: str
    layers: LayerMap
    schedule: Schedule
    losses: tuple[LossEntry, ...]

    @property
    def needs_teacher(self) -> bool:
        """Whether any loss compares the student with a teacher."""
        return any(loss.needs_teacher for loss in self.losses)

    def as_json(self) -> dict[str, Any]:
        """The experiment for run.json; a loss without `divergences` leaves that key out."""
        written = json.loads(json.dumps(asdict(self)))
        for loss in written["losses"]:
            if not loss["divergences"]:
                del loss["divergences"]
        return written


LIMITS: Mapping[str, Mapping[str, Any]] = {
    "generate_labels_weight": {"minimum": 0, "maximum": 1},
    "generate_temperature": {"above": 0},
    "generate_top_p": {"above": 0, "maximum": 1},
    "generate_top_k": {"minimum": 0},
    "temperature": {"minimum": -1},
    "missing_mass": {"choices": ("drop", "zero", "bucket")},
    **dict.fromkeys(TRIGGERS, {"minimum": 1}),
}


def keys_by_kind() -> dict[str, tuple[str, ...]]:
    """The keys that an entry of each kind may have. A loss also has a weight for each registered divergence."""
    classes: dict[str, type[Any]] = {LOSS: LossEntry, LAYERS: LayerMap, SCHEDULE: Schedule}
    keys = {
        kind: tuple(each.name for each in fields(entry_class) if each.name not in ("name", "divergences"))
        for kind, entry_class in classes.items()
    }
    keys[LOSS] = tuple(dict.fromkeys([*keys[LOSS], *map(weight_key, DIVERGENCES)]))
    return {**keys, EXPERIMENT: EXPERIMENT_KEYS}


def objective_names() -> tuple[str, ...]:
    """The names of everything that a loss entry can weigh."""
    return ("forward", *DIVERGENCES, "hidden", "attention_relation")


def weight_key(name: str) -> str:
    """The key of an objective's weight in a loss entry: "hidden" gives "hidden_weight"."""
    return f"{name}_weight"
