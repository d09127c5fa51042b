"""Read, check and list an experiments file (YAML), such as arg_configs/kd_experiment_configs.yaml.

An entry is an experiment, a loss, a layer map or a schedule; its keys say which. An experiment names other entries.
"""

from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NoReturn

from src.config.console import say
from src.config.divergences import DIVERGENCES
from src.config.errors import UserError
from src.config.experiments.schema import (
    TRIGGERS,
    Experiment,
    LayerMap,
    LossEntry,
    Schedule,
    describe,
    objective_names,
    weight_key,
)
from src.config.parsing import check_value, convert, nearest
from src.config.yaml_files import read_mapping

LOSS, LAYERS, SCHEDULE, EXPERIMENT = "loss", "layer map", "schedule", "experiment"  # the kinds of entries
EXPERIMENT_KEYS = ("name", "layer", "scheduling", "losses")
PATIENCE, EPOCHS_PER_LOSS = "n_patience_epochs", "epochs_per_loss"  # values of change_every_n_epochs that the run sets
DEFAULT_PATIENCE_EPOCHS = 16  # for PATIENCE, if --n_patience_epochs is not given
LIMITS: dict[str, dict[str, Any]] = {
    "generate_labels_weight": {"minimum": 0, "maximum": 1},
    "generate_temperature": {"above": 0},
    "generate_top_p": {"above": 0, "maximum": 1},
    "generate_top_k": {"minimum": 0},
    "temperature": {"minimum": -1},
    "missing_mass": {"choices": ("drop", "zero", "bucket")},
    **dict.fromkeys(TRIGGERS, {"minimum": 1}),
}
Entries = dict[str, dict[str, Any]]  # the entries of each kind, by their keys in the file


def keys_by_kind() -> dict[str, tuple[str, ...]]:
    """The keys that an entry of each kind may have. A loss also has a weight for each registered divergence."""
    classes: dict[str, type[Any]] = {LOSS: LossEntry, LAYERS: LayerMap, SCHEDULE: Schedule}
    keys = {
        kind: tuple(each.name for each in fields(entry_class) if each.name not in ("name", "divergences"))
        for kind, entry_class in classes.items()
    }
    keys[LOSS] = tuple(dict.fromkeys([*keys[LOSS], *map(weight_key, DIVERGENCES)]))
    return {**keys, EXPERIMENT: EXPERIMENT_KEYS}


def load_experiments(path: Path) -> dict[str, Experiment]:
    """Every experiment of the file, by its key, after all entries of the file were checked.

    Raises UserError at the first mistake: a misspelled key, an unknown name, a wrong type or value.
    """
    entries: Entries = {kind: {} for kind in keys_by_kind()}
    for key, raw in read_mapping(path).items():
        where = f"{path.name}: {key}"
        kind = _kind(raw, where)
        entries[kind][key] = READERS[kind](key, raw, where) if kind in READERS else raw
    return {key: _experiment(key, raw, entries, f"{path.name}: {key}") for key, raw in entries[EXPERIMENT].items()}


def print_experiments(path: Path) -> None:
    """Print the key and the description of every experiment in the file."""
    experiments = load_experiments(path)
    width = max(map(len, experiments), default=0)
    for key, experiment in experiments.items():
        say(f"{key:<{width}}  {describe(experiment)}")


def load_experiment(path: Path, key: str, *, epochs: int, n_patience_epochs: int | None) -> Experiment:
    """The experiment `key` for a run of `epochs` epochs, with a number for PATIENCE or EPOCHS_PER_LOSS.

    PATIENCE becomes n_patience_epochs, or 16 if that is None. EPOCHS_PER_LOSS becomes max(1, epochs // losses).
    """
    experiment = find_experiment(key, load_experiments(path), path.name)
    numbers = {
        PATIENCE: DEFAULT_PATIENCE_EPOCHS if n_patience_epochs is None else n_patience_epochs,
        EPOCHS_PER_LOSS: max(1, epochs // len(experiment.losses)),
    }
    every = experiment.schedule.change_every_n_epochs
    if not isinstance(every, str):
        return experiment
    return replace(experiment, schedule=replace(experiment.schedule, change_every_n_epochs=numbers[every]))


def find_experiment(key: str, experiments: dict[str, Experiment], file: str) -> Experiment:
    """The experiment under this key. Raises UserError, with the nearest key, if the file has none."""
    if key not in experiments:
        _refuse_unknown("experiment", key, experiments, file)
    return experiments[key]


def _refuse_unknown(what: str, name: str, known: Collection[str], where: str) -> NoReturn:
    close = f"nearest: {nearest(name, known)!r}" if known else "the file has none"
    raise UserError(f"{where}: unknown {what} {name!r}; {close}")


def _kind(entry: Any, where: str) -> str:
    """The kind that has most of the known keys nearest to the entry's; refuses any key that the kind lacks."""
    if not isinstance(entry, dict) or not entry:
        raise UserError(f"{where}: must hold the keys of an experiment, a loss, a layer map or a schedule")
    keys = keys_by_kind()
    meant = [nearest(key, [known for kind in keys for known in keys[kind]]) for key in entry]
    kind = max(keys, key=lambda kind: sum(key in keys[kind] for key in meant))
    for key in entry:
        if key not in keys[kind]:
            _refuse_unknown("key", key, keys[kind], where)
    return kind


def _loss(key: str, raw: dict[str, Any], where: str) -> LossEntry:
    values = _values(LossEntry, raw, where)
    without_field = [name for name in DIVERGENCES if weight_key(name) in values.keys() - vars(LossEntry).keys()]
    divergences = tuple((name, values.pop(weight_key(name))) for name in without_field)
    loss = LossEntry(name=key, divergences=divergences, **values)
    if not loss.weights:
        weights = ", ".join(map(weight_key, objective_names()))
        raise UserError(f"{where}: all weights are 0; give at least one of {weights}")
    if loss.temperature == 0:
        raise UserError(f"{where}.temperature: must not be 0; give a temperature above 0, or -p for the top-p nucleus")
    if loss.missing_mass != "drop" and loss.temperature != 1:
        raise UserError(
            f"{where}.missing_mass: {loss.missing_mass!r} needs temperature 1, because other temperatures need the "
            "log-probabilities that are missing; use temperature 1 or missing_mass: drop"
        )
    return loss


def _schedule(key: str, raw: dict[str, Any], where: str) -> Schedule:
    schedule = Schedule(name=key, **_values(Schedule, raw, where))
    if len(schedule.triggers) > 1:
        raise UserError(f"{where}: {' and '.join(schedule.triggers)} contradict each other; give one of them")
    if schedule.random_sample and not schedule.triggers:
        raise UserError(f"{where}.random_sample: needs one of {', '.join(TRIGGERS)}")
    return schedule


READERS = {  # an experiment is read when all entries that it may name are known
    LOSS: _loss,
    LAYERS: lambda key, raw, where: LayerMap(**_values(LayerMap, raw, where)),
    SCHEDULE: _schedule,
}


def _experiment(key: str, raw: dict[str, Any], entries: Entries, where: str) -> Experiment:
    missing = [name for name in EXPERIMENT_KEYS if name not in raw]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing; an experiment needs {', '.join(EXPERIMENT_KEYS)}")
    if not isinstance(raw["losses"], list) or not raw["losses"]:
        raise UserError(f"{where}.losses: must be a list of loss entries, for example [logits]")
    schedule: Schedule = _named(SCHEDULE, raw["scheduling"], entries, f"{where}.scheduling")
    losses: tuple[LossEntry, ...] = tuple(_named(LOSS, name, entries, f"{where}.losses") for name in raw["losses"])
    if len(losses) > 1 and not schedule.triggers:
        raise UserError(
            f"{where}.scheduling: {schedule.name!r} never changes the loss, so {losses[1].name!r} is never used"
        )
    return Experiment(
        key=key,
        name=convert(raw["name"], str, f"{where}.name"),
        layers=_named(LAYERS, raw["layer"], entries, f"{where}.layer"),
        schedule=schedule,
        losses=losses,
    )


def _named(kind: str, written: Any, entries: Entries, where: str) -> Any:
    """The entry of this kind that the experiment names."""
    name = convert(written, str, where)
    if name in entries[kind]:
        return entries[kind][name]
    for other, named in entries.items():
        if name in named:
            raise UserError(f"{where}: {name!r} ({other}) is not a {kind}; possible: {', '.join(entries[kind])}")
    _refuse_unknown("entry", name, entries[kind], where)


def _values(entry_class: type[Any], raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The values of an entry: converted to the types of the class's fields, and checked."""
    types = {each.name: each.type for each in fields(entry_class)}  # a divergence's weight may have no field
    return {name: _value(name, written, types.get(name, float), f"{where}.{name}") for name, written in raw.items()}


def _value(name: str, written: Any, annotation: Any, where: str) -> Any:
    if name == "change_every_n_epochs":
        if written in (PATIENCE, EPOCHS_PER_LOSS):
            return written
        annotation = int | None
    value = convert(written, annotation, where)
    check_value(value, LIMITS.get(name, {"minimum": 0} if name.endswith("_weight") else {}), where)
    return value
