"""The YAML of experiments, read strictly: what to learn, from which layers, in what order; typed and checked.

An entry is an experiment, a loss, a layer map or a schedule; its keys say which. Experiments name the other entries.
"""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from src.config.console import say
from src.config.divergences import DIVERGENCES
from src.config.errors import UserError
from src.config.parsing import check_value, convert, nearest

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
    return own if kind != LOSS else (*own, *(key for key in map(_weight, DIVERGENCES) if key not in own))


def _weight(name: str) -> str:
    return f"{name}_weight"


def load_experiments(path: Path) -> dict[str, Experiment]:
    """Every experiment of the YAML file by its key, after all entries of the file have been checked.

    Raises UserError for the first mistake: a misspelt key, an unknown reference, a wrong type or value.
    """
    from src.config.yaml_files import read_mapping  # here, because PyYAML would slow every script's --help

    raw = read_mapping(path)
    kinds = {key: _kind(entry, f"{path.name}: {key}") for key, entry in raw.items()}
    entries: dict[str, dict[str, Any]] = {kind: {} for kind in KEYS}
    for key, kind in kinds.items():
        entries[kind][key] = _READERS[kind](key, raw[key], f"{path.name}: {key}") if kind in _READERS else raw[key]
    return {
        key: _experiment(key, written, entries, f"{path.name}: {key}") for key, written in entries[EXPERIMENT].items()
    }


def load_experiment(path: Path, key: str, *, epochs: int, n_patience_epochs: int | None) -> Experiment:
    """The experiment `key` for a run of `epochs` epochs: a schedule that depends on the run gets its number.

    n_patience_epochs: the run's, or 16 if None. epochs_per_loss: max(1, epochs // number of losses).
    """
    experiments = load_experiments(path)
    if key not in experiments:
        _refuse_unknown("experiment", key, experiments, path.name)
    experiment = experiments[key]
    numbers = {
        PATIENCE: DEFAULT_PATIENCE_EPOCHS if n_patience_epochs is None else n_patience_epochs,
        EPOCHS_PER_LOSS: max(1, epochs // len(experiment.losses)),
    }
    every = experiment.schedule.change_every_n_epochs
    if not isinstance(every, str):
        return experiment
    return replace(experiment, schedule=replace(experiment.schedule, change_every_n_epochs=numbers[every]))


def print_experiments(path: Path) -> None:
    """Every experiment of the YAML file, with a line on it."""
    described = {key: describe(experiment) for key, experiment in load_experiments(path).items()}
    width = max(map(len, described), default=0)
    for key, line in described.items():
        say(f"{key:<{width}}  {line}")


def describe(experiment: Experiment) -> str:
    """A line on what an experiment learns, and when the next loss takes over."""
    schedule, losses = experiment.schedule, [_describe_loss(loss) for loss in experiment.losses]
    if len(losses) == 1:
        return losses[0]
    order = "drawn at random" if schedule.random_sample else "then stays" if schedule.keep_last else "then again"
    triggers = {
        f"every {schedule.change_every_n_epochs} epochs": schedule.change_every_n_epochs,
        f"every {schedule.change_every_n_evaluation_steps} evaluations": schedule.change_every_n_evaluation_steps,
        f"after {schedule.change_no_improvements_for} evaluations without a better score": (
            schedule.change_no_improvements_for
        ),
    }
    (trigger,) = (text for text, number in triggers.items() if number is not None)
    return f"{' -> '.join(losses)}; changes {trigger}, {order}"


def _describe_loss(loss: LossEntry) -> str:
    support = ""
    if loss.temperature < 0:
        support = f" to the top-{-loss.temperature:g} nucleus"
    elif loss.temperature != 1:
        support = f" at T {loss.temperature:g}"
    names = {name: f"{each.words}{support}" for name, each in DIVERGENCES.items()}
    names |= {"forward": "NLL", "hidden": "hidden relations", "attention_relation": "attention relations"}
    for term in ("hidden", "attention_relation"):
        names[term] += f" ({'KL' if loss.kl_loss else 'RMSE'})"
    said = " + ".join(
        names[term] if weight == 1 else f"{weight:g} {names[term]}" for term, weight in loss.weights.items()
    )
    said += ", scaled" if loss.loss_scale else ""
    said += ", noisy teacher" if loss.dropout else ""
    said += f", missing mass: {loss.missing_mass}" if loss.missing_mass != "drop" else ""
    share = loss.generate_labels_weight
    return said + (f", labels by the student on {share:.0%} of the steps{_describe_sampling(loss)}" if share else "")


def _describe_sampling(loss: LossEntry) -> str:
    """How the student samples, where it is not as usual: " (top-k 50)"."""
    settings = {
        "T": (loss.generate_temperature, LossEntry.generate_temperature),
        "top-p": (loss.generate_top_p, LossEntry.generate_top_p),
        "top-k": (loss.generate_top_k, LossEntry.generate_top_k),
    }
    changed = [f"{name} {value:g}" for name, (value, usual) in settings.items() if value != usual]
    return f" ({', '.join(changed)})" if changed else ""


def _refuse_unknown(what: str, name: str, known: Collection[str], where: str) -> NoReturn:
    close = f"nearest: {nearest(name, known)!r}" if known else "the file has none"
    raise UserError(f"{where}: unknown {what} {name!r}; {close}")


def _kind(entry: Any, where: str) -> str:
    """Which kind of entry this is: the one that knows most of its keys; a key that it does not know is refused."""
    if not isinstance(entry, dict) or not entry:
        raise UserError(f"{where}: must hold the keys of an experiment, a loss, a layer map or a schedule")
    every_key = [key for kind in KEYS for key in keys_of(kind)]
    meant = [nearest(key, every_key) for key in entry]

    def familiar(kind: str) -> tuple[int, int]:
        return sum(key in keys_of(kind) for key in entry), sum(key in keys_of(kind) for key in meant)

    kind = max(KEYS, key=familiar)
    for key in entry:
        if key not in keys_of(kind):
            _refuse_unknown("key", key, keys_of(kind), where)
    return kind


def _loss(key: str, raw: dict[str, Any], where: str) -> LossEntry:
    own = {name: written for name, written in raw.items() if name in KEYS[LOSS]}
    divergences = tuple(
        (name, _value(_weight(name), raw[_weight(name)], float, f"{where}.{_weight(name)}"))
        for name in DIVERGENCES
        if _weight(name) in raw.keys() - own.keys()
    )
    loss = LossEntry(name=key, divergences=divergences, **_values(LossEntry, own, where))
    if not loss.weights:
        weights = [name for name in keys_of(LOSS) if name.endswith("_weight") and not name.startswith("generate")]
        raise UserError(f"{where}: all weights are 0; give at least one of {', '.join(weights)}")
    if loss.temperature == 0:
        raise UserError(f"{where}.temperature: must not be 0; -p (p from 0 to 1) cuts to the top-p nucleus")
    if loss.missing_mass != "drop" and loss.temperature != 1:
        raise UserError(
            f"{where}.missing_mass: {loss.missing_mass!r} needs temperature 1, because other temperatures need the "
            "missing log-probabilities too; 'drop' goes with any"
        )
    return loss


def _layers(_key: str, raw: dict[str, Any], where: str) -> LayerMap:
    return LayerMap(**_values(LayerMap, raw, where))


def _schedule(key: str, raw: dict[str, Any], where: str) -> Schedule:
    schedule = Schedule(name=key, **_values(Schedule, raw, where))
    given = [name for name in KEYS[SCHEDULE][:3] if getattr(schedule, name) is not None]
    if len(given) > 1:
        raise UserError(f"{where}: {' and '.join(given)} contradict each other; give one of them")
    if schedule.random_sample and not given:
        raise UserError(f"{where}.random_sample: needs one of {', '.join(KEYS[SCHEDULE][:3])}")
    return schedule


_READERS: Mapping[str, Callable[[str, dict[str, Any], str], Any]] = {LOSS: _loss, LAYERS: _layers, SCHEDULE: _schedule}


def _experiment(key: str, raw: dict[str, Any], entries: dict[str, dict[str, Any]], where: str) -> Experiment:
    missing = [name for name in EXPERIMENT_KEYS if name not in raw]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing; an experiment has {', '.join(EXPERIMENT_KEYS)}")
    if not isinstance(raw["losses"], list) or not raw["losses"]:
        raise UserError(f"{where}.losses: must be a list of loss entries, for example [logits]")
    schedule: Schedule = _named(SCHEDULE, raw["scheduling"], entries, f"{where}.scheduling")
    losses: tuple[LossEntry, ...] = tuple(_named(LOSS, name, entries, f"{where}.losses") for name in raw["losses"])
    if len(losses) > 1 and not schedule.changes:
        raise UserError(
            f"{where}.scheduling: {schedule.name!r} never changes the loss: {losses[1].name!r} is not reached"
        )
    return Experiment(
        key=key,
        name=convert(raw["name"], str, f"{where}.name"),
        layers=_named(LAYERS, raw["layer"], entries, f"{where}.layer"),
        schedule=schedule,
        losses=losses,
    )


def _named(kind: str, written: Any, entries: dict[str, dict[str, Any]], where: str) -> Any:
    """The entry of this kind that is called `written`."""
    name = convert(written, str, where)
    if name in entries[kind]:
        return entries[kind][name]
    for other, named in entries.items():
        if name in named:
            raise UserError(f"{where}: {name!r} ({other}) is not a {kind}; possible: {', '.join(entries[kind])}")
    _refuse_unknown("entry", name, entries[kind], where)


def _values(entry_class: type[Any], raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The entry's values, converted to the types of the class's fields and within LIMITS."""
    types = {each.name: each.type for each in fields(entry_class)}
    return {name: _value(name, written, types[name], f"{where}.{name}") for name, written in raw.items()}


def _value(name: str, written: Any, annotation: Any, where: str) -> Any:
    if name == "change_every_n_epochs":
        if written in (PATIENCE, EPOCHS_PER_LOSS):
            return written
        annotation = int | None
    value = convert(written, annotation, where)
    check_value(value, LIMITS.get(name, {"minimum": 0} if name.endswith("_weight") else {}), where)
    return value
