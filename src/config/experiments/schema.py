"""The entries of a YAML of experiments: losses, layer maps, schedules, experiments."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from src.config.divergences import DIVERGENCES

DEFAULT_PATIENCE_EPOCHS = 16  # of a schedule that follows --n_patience_epochs when that flag is not given


PATIENCE, EPOCHS_PER_LOSS = "n_patience_epochs", "epochs_per_loss"  # numbers of a schedule that the run decides


@dataclass(frozen=True, kw_only=True)
class LossEntry:
    """What one loss weighs, and on which share of the steps the student generates the labels itself.

    generate_...: how it samples them; top_k 0: from any number of tokens.
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
    divergences: tuple[tuple[str, float], ...] = ()  # names and weights of those in DIVERGENCES that have no field here

    @property
    def weights(self) -> dict[str, float]:
        """The objectives that count, by name: forward, divergences, hidden and attention_relation."""
        names = ("forward", *DIVERGENCES, "hidden", "attention_relation")
        weights = {name: getattr(self, f"{name}_weight", 0.0) for name in names} | dict(self.divergences)
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def compares_layers(self) -> bool:
        """Whether any term compares hidden states or attention, and not only the distributions that come of them."""
        return bool(self.weights.keys() & {"hidden", "attention_relation"})

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares the student with a teacher."""
        return any(term != "forward" for term in self.weights)


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """Which layers are compared: hidden states, self-attention (sa), cross-attention (ca); −1 is the last layer."""

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
        """The layers of "student" or "teacher": by enc_hidden, dec_hidden, enc_sa, dec_sa and dec_ca."""
        places = ("enc_hidden", "dec_hidden", "enc_sa", "dec_sa", "dec_ca")
        return {place: getattr(self, f"{role}_{place}_layer") for place in places}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """When the next of the experiment's losses takes over; at most one of the three `change_...` is given.

    After the last loss: stay (`keep_last`) or begin again. `random_sample` draws the next loss instead. In a file,
    `change_every_n_epochs` may be n_patience_epochs or epochs_per_loss; `load_experiment` makes a number of it.
    """

    name: str
    change_every_n_epochs: int | str | None = None
    change_every_n_evaluation_steps: int | None = None
    change_no_improvements_for: int | None = None
    keep_last: bool = True
    random_sample: bool = False

    @property
    def changes(self) -> bool:
        """Whether the loss ever changes."""
        triggers = (self.change_every_n_epochs, self.change_every_n_evaluation_steps, self.change_no_improvements_for)
        return any(trigger is not None for trigger in triggers)

    @property
    def follows_evaluations(self) -> bool:
        """Whether it counts evaluations on dev."""
        return self.change_every_n_evaluation_steps is not None or self.change_no_improvements_for is not None


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment of the file, its references resolved; `losses` are in the order in which they are used."""

    key: str
    name: str
    layers: LayerMap
    schedule: Schedule
    losses: tuple[LossEntry, ...]

    @property
    def needs_teacher(self) -> bool:
        """Whether any of the losses compares the student with a teacher."""
        return any(loss.needs_teacher for loss in self.losses)

    def as_json(self) -> dict[str, Any]:
        """The experiment as run.json has it: what is no divergence of a loss is not named."""
        written = json.loads(json.dumps(asdict(self)))
        for loss in written["losses"]:
            if not loss["divergences"]:
                del loss["divergences"]
        return written


MISSING_MASS = ("drop", "zero", "bucket")  # of a stored teacher: what the tokens that are not stored count for


LOSS, LAYERS, SCHEDULE, EXPERIMENT = "loss", "layer map", "schedule", "experiment"


ENTRY_CLASSES: Mapping[str, type[Any]] = {LOSS: LossEntry, LAYERS: LayerMap, SCHEDULE: Schedule}


EXPERIMENT_KEYS = ("name", "layer", "scheduling", "losses")


KEYS: Mapping[str, tuple[str, ...]] = {
    kind: tuple(each.name for each in fields(entry_class) if each.name not in ("name", "divergences"))
    for kind, entry_class in ENTRY_CLASSES.items()
} | {EXPERIMENT: EXPERIMENT_KEYS}


LIMITS: Mapping[str, Mapping[str, Any]] = {
    "generate_labels_weight": {"minimum": 0, "maximum": 1},
    "generate_temperature": {"above": 0},
    "generate_top_p": {"above": 0, "maximum": 1},
    "generate_top_k": {"minimum": 0},
    "temperature": {"minimum": -1},
    "missing_mass": {"choices": MISSING_MASS},
    "change_every_n_epochs": {"minimum": 1},
    "change_every_n_evaluation_steps": {"minimum": 1},
    "change_no_improvements_for": {"minimum": 1},
}


def keys_of(kind: str) -> tuple[str, ...]:
    """The keys that an entry of this kind may hold; a loss, a weight for each divergence."""
    own = KEYS[kind]
    return own if kind != LOSS else (*own, *(key for key in map(weight_key, DIVERGENCES) if key not in own))


def weight_key(name: str) -> str:
    return f"{name}_weight"
