"""Which runs are one method with several seeds, and what each method is: teacher, fine-tuned student, student or other.

Roles follow from the flags; nothing has to be declared.
"""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from src.config.constants import LOWER_IS_BETTER
from src.reports.collect import DISTILL, FINE_TUNE, Run
from src.runs.description import NOT_COMPARED
from src.runs.records import MODEL_FOLDER

TEACHER, BASELINE, STUDENT, OTHER = "teacher", "fine-tuned student", "student", "other"
ROLES = (TEACHER, BASELINE, STUDENT, OTHER)
IGNORED = {*NOT_COMPARED, "seed", "list_experiments", "dry_run"}
PATHS = ("_path", "_name")  # how the names of flags that hold paths end


@dataclass(eq=False)
class Method:
    """Runs that differ only in their seed.

    teacher, baseline: the methods that the gap is measured between; None if they are not there.
    """

    runs: list[Run]
    role: str = OTHER
    label: str = ""
    family: str = ""  # the label without the number of pseudo-targets
    number: int = 0
    teacher: "Method | None" = None
    baseline: "Method | None" = None
    n_pseudo_targets: int | None = None
    repeated: list[Run] = field(default_factory=list)  # with a seed that is there already

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def is_distilled(self) -> bool:
        return self.first.script in DISTILL and self.first.is_trained

    def value(self, flag: str) -> Any:
        """A flag's value; what differs from seed to seed becomes `{seed}`."""
        value = self.first.flags.get(flag)
        if not isinstance(value, str) or len({run.flags.get(flag) for run in self.runs}) == 1:
            return value
        parts, others = (re.split(r"(\d+)", str(run.flags.get(flag))) for run in self.runs[:2])
        return "".join(part if part == other else "{seed}" for part, other in zip(parts, others, strict=True))


def group_by_method(runs: Iterable[Run]) -> list[Method]:
    """Put runs that differ only in the seed together, in the order of their seeds."""
    methods: list[Method] = []
    for run in sorted(runs, key=lambda each: each.seed):
        method = next((each for each in methods if _is_same_method(each.first, run)), None)
        if method is None:
            methods.append(Method([run]))
        elif run.seed in {each.seed for each in method.runs}:
            method.repeated.append(run)
        else:
            method.runs.append(run)
    return methods


def _is_same_method(run: Run, other: Run) -> bool:
    """Whether flags are equal but for the seed, and for numbers in paths that are the run's seed; and so are data."""
    if run.script != other.script:
        return False
    for name in {*run.flags, *other.flags} - IGNORED:
        first, second = run.flags.get(name), other.flags.get(name)
        if first != second and not (name.endswith(PATHS) and _differ_by_seed(first, second, run.seed, other.seed)):
            return False
        known, others = run.records.description.data, other.records.description.data
        if first == second and name in known and name in others and known[name] != others[name]:
            return False
    return True


def _differ_by_seed(path: Any, other: Any, seed: int, other_seed: int) -> bool:
    if not isinstance(path, str) or not isinstance(other, str):
        return False
    parts, others = re.split(r"(\d+)", path), re.split(r"(\d+)", other)
    seeds = (str(seed), str(other_seed))
    return len(parts) == len(others) and all(
        pair[0] == pair[1] or pair == seeds for pair in zip(parts, others, strict=True)
    )


def assign_roles(methods: Sequence[Method]) -> None:
    """Set the role, teacher and baseline of each method of one test set."""
    students = [each for each in methods if each.is_distilled]
    for student in students:
        student.role = STUDENT
        student.teacher = _best(each for each in methods if _is_teacher(each, student))
    teachers = [each for each in methods if each in {student.teacher for student in students}]
    for student in students:
        if student.teacher is None and "teacher_name" not in student.first.flags and len(teachers) == 1:
            student.teacher = teachers[0]  # of stored log-probabilities, whose flags do not name it
        candidates = (each for each in methods if each not in teachers and _is_baseline(each, student))
        student.baseline = _best(candidates)
    for method in teachers:
        method.role = TEACHER
    for method in methods:
        if method in {student.baseline for student in students}:
            method.role = BASELINE


def _best(candidates: Iterable[Method]) -> Method | None:
    """A trained one before one that is only scored, then the best on dev."""
    return max(candidates, key=lambda each: (each.first.is_trained, _dev_score(each.first)), default=None)


def _dev_score(run: Run) -> float:
    """The best of the score that chose the checkpoint; a higher number is better."""
    name = run.flags["metric_for_best_model"]
    sign = -1 if name in LOWER_IS_BETTER else 1
    rows = [sign * row[name] for row in run.records.scores if row["split"] == "dev" and row.get(name) is not None]
    return max(rows, default=float("-inf"))


def _is_teacher(method: Method, student: Method) -> bool:
    return method.first.script == FINE_TUNE and any(
        _wrote(run, name) if run.is_trained else _same_place(run.flags.get("checkpoint_path") or _model(run), name)
        for learner in student.runs
        if (name := learner.flags.get("teacher_state_dict_path") or learner.flags.get("teacher_name"))
        for run in method.runs
    )


def _is_baseline(method: Method, student: Method) -> bool:
    """Whether a method fine-tuned the student's initial weights."""
    weights = {(learner.flags["student_name"], learner.flags["student_state_dict_path"]) for learner in student.runs}
    return (method.first.script == FINE_TUNE and method.first.is_trained) and any(
        _same_place(_model(run), name) and _same_place(run.flags["checkpoint_path"], state)
        for run in method.runs
        for name, state in weights
    )


def _model(run: Run) -> str:
    return run.flags["model_name"]


def _wrote(run: Run, name: str) -> bool:
    """Whether a path is the model folder or a checkpoint of a run, where the run was or where its folder is now."""
    for folder in _places(run.flags["output_dir"]) | _places(str(run.folder)):
        for place in map(Path, _places(name)):
            if place.is_relative_to(folder) and place != Path(folder):
                entry = place.relative_to(folder).parts[0]
                if entry == MODEL_FOLDER or entry.startswith("epoch"):
                    return True
    return False


def _same_place(name: str | None, other: str | None) -> bool:
    return name == other if name is None or other is None else bool(_places(name) & _places(other))


def _places(name: str) -> set[str]:
    """A path, or the name of a model on the hub, as it is written and as it is on this machine."""
    return {os.path.normpath(name), os.path.realpath(name)}


def differing_flags(methods: Sequence[Method]) -> dict[str, list[Any]]:
    """The flags that differ between the methods that have them, with their values (None for the other methods)."""
    names = dict.fromkeys(name for method in methods for name in method.first.flags if name not in IGNORED)
    known = {name: [method.value(name) for method in methods if name in method.first.flags] for name in names}
    return {
        name: [method.value(name) for method in methods]
        for name, values in known.items()
        if any(value != values[0] and not (_is_off(value) and _is_off(values[0])) for value in values)
    }


def _is_off(value: Any) -> bool:
    """Whether a flag is unset or off; its default is None in some scripts, and False or an empty text in others."""
    return value is None or value is False or value == ""


def set_labels(methods: Sequence[Method]) -> None:
    """Number the methods, by role and in a fixed order, and give each a label of its own."""
    ordered = sorted(methods, key=lambda each: (ROLES.index(each.role), each.n_pseudo_targets or 0))
    for number, method in enumerate(ordered, start=1):
        method.number, method.family = number, _family(method)
        count = method.n_pseudo_targets
        method.label = f"{method.family}, {count} pseudo-target{'s'[: count > 1]}" if count else method.family
    by_label: dict[str, list[Method]] = {}
    for method in ordered:
        by_label.setdefault(method.label, []).append(method)
    for same in by_label.values():
        flags = differing_flags(same) if len(same) > 1 else {}
        files = [Path(path).stem for path in flags.get("dataset_path", ())]
        for i, method in enumerate(same):
            given = {name: values[i] for name, values in flags.items() if values[i] is not None}
            told = [f"{name} {short(value)}" for name, value in given.items()]
            if len(set(files)) == len(same):  # the dataset says it all
                told = [files[i]]
            method.label = ", ".join([method.label, *told])
            method.family = ", ".join([method.family, *told])
    if len({method.label for method in ordered}) < len(ordered):
        for method in ordered:
            method.label = f"{method.label} ({method.first.folder.name})"


def _family(method: Method) -> str:
    if method.is_distilled:
        return method.value("experiment_config_key")
    if method.role != OTHER:
        return method.role
    model = method.value("model_name" if method.first.script == FINE_TUNE else "student_name")
    return f"{short(model)}, {'fine-tuned' if method.first.is_trained else 'only scored'}"


def short(value: Any) -> str:
    """A value as text; of a path the last two parts."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "/".join(Path(value).parts[-2:]) if isinstance(value, str) and "/" in value else str(value)
