"""The YAML of experiments, read strictly: what to learn, from which layers, in what order; typed and checked.

An entry is an experiment, a loss, a layer map or a schedule; its keys say which. Experiments name the other entries.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from src.config.divergences import DIVERGENCES
from src.config.errors import UserError
from src.config.experiments.schema import (
    DEFAULT_PATIENCE_EPOCHS,
    EPOCHS_PER_LOSS,
    EXPERIMENT,
    EXPERIMENT_KEYS,
    KEYS,
    LAYERS,
    LIMITS,
    LOSS,
    PATIENCE,
    SCHEDULE,
    Experiment,
    LayerMap,
    LossEntry,
    Schedule,
    keys_of,
    weight_key,
)
from src.config.parsing import check_value, convert, nearest


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
        (name, _value(weight_key(name), raw[weight_key(name)], float, f"{where}.{weight_key(name)}"))
        for name in DIVERGENCES
        if weight_key(name) in raw.keys() - own.keys()
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
