"""Dataclasses for the entries of an experiments file: losses, layer maps, schedules, experiments."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from src.config.divergences import DIVERGENCES

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


def objective_names() -> tuple[str, ...]:
    """The names of everything that a loss entry can weigh."""
    return ("forward", *DIVERGENCES, "hidden", "attention_relation")


def weight_key(name: str) -> str:
    """The key of an objective's weight in a loss entry: "hidden" gives "hidden_weight"."""
    return f"{name}_weight"


def describe(experiment: Experiment) -> str:
    """One line: the losses, and when training changes from one to the next."""
    schedule, losses = experiment.schedule, [_describe_loss(loss) for loss in experiment.losses]
    if len(losses) == 1:
        return losses[0]
    order = "drawn at random" if schedule.random_sample else "then stays" if schedule.keep_last else "then again"
    (trigger,) = schedule.triggers
    when = {
        "change_every_n_epochs": "every {} epochs",
        "change_every_n_evaluation_steps": "every {} evaluations",
        "change_no_improvements_for": "after {} evaluations without a better score",
    }[trigger].format(getattr(schedule, trigger))
    return f"{' -> '.join(losses)}; changes {when}, {order}"


def _describe_loss(loss: LossEntry) -> str:
    support = ""
    if loss.temperature < 0:
        support = f" to the top-{-loss.temperature:g} nucleus"
    elif loss.temperature != 1:
        support = f" at T {loss.temperature:g}"
    relations = f"relations ({'KL' if loss.kl_loss else 'RMSE'})"
    names = {name: f"{each.label}{support}" for name, each in DIVERGENCES.items()}
    names |= {"forward": "NLL", "hidden": f"hidden {relations}", "attention_relation": f"attention {relations}"}
    said = " + ".join(
        names[term] if weight == 1 else f"{weight:g} {names[term]}" for term, weight in loss.weights.items()
    )
    said += ", scaled" if loss.loss_scale else ""
    said += ", noisy teacher" if loss.dropout else ""
    said += f", missing mass: {loss.missing_mass}" if loss.missing_mass != "drop" else ""
    share = loss.generate_labels_weight
    return said + (f", labels by the student on {share:.0%} of the steps{_describe_sampling(loss)}" if share else "")


def _describe_sampling(loss: LossEntry) -> str:
    """The sampling settings that differ from the defaults, such as " (top-k 50)"."""
    settings = {"T": "generate_temperature", "top-p": "generate_top_p", "top-k": "generate_top_k"}
    values = {label: (getattr(loss, name), getattr(LossEntry, name)) for label, name in settings.items()}
    changed = [f"{label} {value:g}" for label, (value, default) in values.items() if value != default]
    return f" ({', '.join(changed)})" if changed else ""
