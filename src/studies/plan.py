"""Expand a study's plan (YAML) into jobs: data, models, teachers, pseudo-targets, methods x seeds.

An entry holds flags of its script. Where a flag names a model or a dataset, the plan may name another entry.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from src.config.errors import UserError
from src.config.experiments.schema import Experiment
from src.config.flags.generate import generated_file
from src.config.scripts import flag_names
from src.config.yaml_files import read_mapping
from src.studies.entries import OF_THE_STUDY, Entries, Entry, closest, refuse_unknown, texts, users_file
from src.studies.grid import combinations, file_name, folder_part
from src.studies.jobs import Flags, Job, Study, Value

PREPARE, CREATE = "prepare_datasets_main.py", "create_student_main.py"
FINE_TUNE, GENERATE, DISTILL, PROFILE = "ft_main.py", "gen_main.py", "kd_main.py", "profile_main.py"
STUDENT_KEYS = ("model", "teacher", "data")
METHOD_KEYS = ("students", "pseudo_targets", "seeds")
MERGE_FLAGS = (  # of a pseudo_targets entry, for the script that merges; all others are for the one that generates
    "use_unlabeled", "use_labeled", "use_original", "use_cut_off", "n_augmentations_per_example",
)  # fmt: skip
MODEL_FLAGS = ("model_name", "from_model", "tokenizer")  # that may name a model or teacher of the plan


def read_study(path: Path, output_dir: str | None = None, seed: int | None = None) -> Study:
    """The study of a plan; output_dir and seed, that of the students' runs, replace the plan's.

    Raises UserError, naming the entry, for every mistake that can be seen before it runs.
    """
    entries = Entries(path.name, read_mapping(path))
    root = Path(output_dir or str(entries.content.get("output_dir") or f"outputs/{path.stem}"))
    plan = _Plan(entries, root, None if seed is None else [str(seed)])
    for name in entries.section("methods"):
        plan.add_method(name)
    if "profile" in entries.content:
        plan.add_profile()
    if not plan.jobs:
        raise UserError(f"{path.name}: methods: names no method, so there is nothing to run")
    experiments: dict[Path, dict[str, Experiment]] = {}
    for job in plan.jobs.values():
        job.check(experiments)
    return Study(plan.root, tuple(plan.jobs.values()))


@dataclass(frozen=True)
class _Made:
    """A file or folder, the job that makes it (none for what the user has), and the user's files behind it."""

    path: str
    needs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


class _Plan:
    def __init__(self, entries: Entries, root: Path, seeds: list[str] | None) -> None:
        self.entries, self.root, self.seeds = entries, root, seeds
        self.jobs: dict[str, Job] = {}
        self._made: dict[str, _Made] = {}
        self._in_progress: list[str] = []

    def data(self, name: str) -> _Made:
        """A dataset file."""
        return self._once("data", name, self._make_data)

    def _make_data(self, name: str, entry: Entry, place: str) -> _Made:
        known = self.entries.section("data")
        if "file" in entry:
            refuse_unknown(entry, ("file",), place)
            return _Made(str(entry["file"]), files=users_file(str(entry["file"]), f"{place}: file", known))
        given = entry.get("dataset_path")
        files = users_file(given, f"{place}: dataset_path", known) if isinstance(given, str) else ()
        flags = self.entries.flags(PREPARE, entry, place) | self._file(f"{name}.json")
        return self._add(f"data/{name}", place, PREPARE, flags, f"data/{name}.json", _Made("", files=files))

    def model(self, name: str, place: str) -> _Made:
        """A model folder: that of an entry of models or teachers, else the user's folder or hub name."""
        models, teachers = self.entries.section("models"), self.entries.section("teachers")
        if name in teachers:
            return self._once("teachers", name, self._make_teacher)
        if name in models:
            return self._once("models", name, self._make_model)
        if name.startswith((".", "/", "outputs/")) and not Path(name).exists():
            raise UserError(
                f"{place}: {name}: there is no such folder; as an entry: {closest(name, [*models, *teachers])}"
            )
        return _Made(name)

    def _make_model(self, name: str, entry: Entry, place: str) -> _Made:
        flags, inputs = self._resolved(CREATE, entry, place)
        return self._add(f"models/{name}", place, CREATE, flags, f"models/{name}", *inputs)

    def _make_teacher(self, name: str, entry: Entry, place: str) -> _Made:
        """The model folder of a teacher, fine-tuned by the study or by the user before."""
        if "folder" in entry:
            refuse_unknown(entry, ("folder",), place)
            return self.model(str(entry["folder"]), f"{place}: folder")
        flags, inputs = self._resolved(FINE_TUNE, entry, place)
        return self._add(f"teachers/{name}", place, FINE_TUNE, flags, f"teachers/{name}/model", *inputs)

    def _score_teacher(self, teacher: str, data: str, place: str) -> None:
        """Score a teacher on the test split of the students' data, unless its own run does."""
        if self.entries.section("teachers").get(teacher, {}).get("dataset_path") == data:
            return
        model, split, name = self.model(teacher, place), self.data(data), f"teachers/{file_name(teacher)}__on_{data}"
        named = {"do_train": "False", "model_name": model.path, "dataset_path": split.path}
        flags = self.entries.flags(FINE_TUNE, {}, place) | named
        self._add(name, place, FINE_TUNE, flags, f"{name}/model", model, split)

    def pseudo_targets(self, name: str, teacher: str, data: str, place: str) -> _Made:
        """The dataset with a teacher's pseudo-targets for the inputs of a dataset."""
        entry = self.entries.entry("pseudo_targets", name, place)
        place = f"{self.entries.file}: pseudo_targets.{name}"
        model, inputs, where = self.model(teacher, place), self.data(data), self._label(name, teacher, data)
        merge = {flag: value for flag, value in entry.items() if flag in MERGE_FLAGS}
        generate = {flag: value for flag, value in entry.items() if flag not in merge}
        flags: dict[str, Value] = {"add_original_data": "True", **self.entries.flags(GENERATE, generate, place)}
        flags |= {"model_name": model.path, "dataset_path": inputs.path}
        written = generated_file(inputs.path)
        targets = self._add(f"gen/{where}", place, GENERATE, flags, f"gen/{where}/{written}", model, inputs)
        merged = where + Path(written).suffix
        flags = self.entries.flags(PREPARE, merge, place) | self._file(merged)
        flags |= {"original_dataset_path": inputs.path, "generation_dataset_path": targets.path}
        return self._add(f"data/{where}", place, PREPARE, flags, f"data/{merged}", targets, inputs)

    def _label(self, name: str, teacher: str, data: str) -> str:
        """The name of pseudo-targets, with teacher and data if the students of the plan differ in them."""
        pairs = {(each.get("teacher"), each.get("data")) for each in self.entries.section("students").values()}
        return name if len(pairs) < 2 else f"{name}__{file_name(teacher)}__{data}"

    def add_method(self, name: str) -> None:
        """Add the runs of a method: for each of its students, pseudo-targets, grid points and seeds."""
        place, all_students = f"{self.entries.file}: methods.{name}", self.entries.section("students")
        entry = self.entries.entry("methods", name, place)
        script = DISTILL if "experiment_config_key" in entry else FINE_TUNE
        students = texts(entry.get("students") or list(all_students), f"{place}: students")
        targets = texts(entry.get("pseudo_targets") or [], f"{place}: pseudo_targets")
        seeds = self.seeds or texts(entry.get("seeds") or self.entries.content.get("seeds") or "42", f"{place}: seeds")
        if not students:
            raise UserError(f"{self.entries.file}: students: names no student")
        own = {flag: value for flag, value in entry.items() if flag not in METHOD_KEYS}
        for student in students:
            settings = self.entries.entry("students", student, place)
            if missing := [key for key in STUDENT_KEYS if key not in settings]:
                raise UserError(f"{self.entries.file}: students.{student}: needs {', '.join(missing)}")
            shared = {flag: value for flag, value in settings.items() if flag not in STUDENT_KEYS}
            for chosen in targets or (None,):
                parts = [name, *([student] if len(all_students) > 1 else []), *([chosen] if chosen else [])]
                for point in combinations(script, {**shared, **own}, place):
                    flags = self.entries.flags(script, point.flags, place)
                    grid = [folder_part(*each) for each in point.chosen]
                    for seed in seeds:
                        run = "__".join([*parts, *grid, f"seed{seed}"])
                        self._add_run(script, settings, chosen, {**flags, "seed": seed}, run, place)

    def _add_run(self, script: str, settings: Entry, targets: str | None, flags: Flags, name: str, place: str) -> None:
        teacher, data = str(settings["teacher"]), str(settings["data"])
        student, model = self.model(str(settings["model"]), place), self.model(teacher, place)
        self._score_teacher(teacher, data, place)
        rows = self.data(data) if targets is None else self.pseudo_targets(targets, teacher, data, place)
        if script == DISTILL:
            room, names, inputs = (
                "kd",
                {"student_name": student.path, "teacher_name": model.path},
                [student, model, rows],
            )
        else:
            room, names, inputs = "ft", {"model_name": student.path}, [student, rows]
        flags = {**flags, **names, "dataset_path": rows.path}
        self._add(f"{room}/{name}", place, script, flags, f"{room}/{name}/model", *inputs)

    def add_profile(self) -> None:
        """Measure the size and speed of every teacher and student; all students of an entry have the same."""
        entry, place = self.entries.content["profile"] or {}, f"{self.entries.file}: profile"
        if not isinstance(entry, dict):
            raise UserError(f"{place}: must consist of `flag: value` lines")
        models = [
            self.model(str(each[role]), place)
            for role in ("teacher", "model")
            for each in self.entries.section("students").values()
        ]
        flags = self.entries.flags(PROFILE, entry, place) | {
            "model_name": list(dict.fromkeys(made.path for made in models)),
            "output_file_path": f"{self.root}/profile.json",
        }
        self._add("profile", place, PROFILE, flags, "profile.json", *models)

    # ------------------------------------------------------------------------------------------------------ helpers

    def _once(self, section: str, name: str, make: Callable[[str, Entry, str], _Made]) -> _Made:
        """What an entry makes, made once; refuses an entry that needs itself."""
        key, file = f"{section}.{name}", self.entries.file
        if key in self._in_progress:
            raise UserError(f"{file}: {' needs '.join([*self._in_progress, key])}: a cycle")
        if key not in self._made:
            self._in_progress.append(key)
            self._made[key] = make(name, self.entries.entry(section, name, file), f"{file}: {key}")
            self._in_progress.pop()
        return self._made[key]

    def _add(self, name: str, place: str, script: str, flags: Flags, result: str, *inputs: _Made) -> _Made:
        """Add a job that reads `inputs`, unless one with the same flags is there, which then serves for both."""
        needs, files = (
            tuple(dict.fromkeys(each for made in inputs for each in getattr(made, kind))) for kind in ("needs", "files")
        )
        if "output_dir" in flag_names(script):
            flags = {**flags, "output_dir": flags.get("output_dir", f"{self.root}/{name}")}
        job = Job(name, place, script, flags, self.root / result, needs, files)
        for other in self.jobs.values():
            if other.script == script and _content(other.flags) == _content(flags):
                return _Made(str(other.result), (other.name,))
        if name in self.jobs:
            raise UserError(f"{place}: {name} is the name of two runs with different flags")
        self.jobs[name] = job
        return _Made(str(job.result), (name,))

    def _file(self, name: str) -> dict[str, Value]:
        return {"file_name": name, "output_dir": f"{self.root}/data"}

    def _resolved(self, script: str, entry: Entry, place: str) -> tuple[dict[str, Value], list[_Made]]:
        """Flags with the paths of the entries that they name, and what is behind these."""
        flags, inputs, data = self.entries.flags(script, entry, place), [], self.entries.section("data")
        for name in ("dataset_path", *MODEL_FLAGS):
            named, here = flags.get(name), f"{place}: {name}"
            if not isinstance(named, str):
                continue
            if name != "dataset_path":
                made = self.model(named, here)
            elif named in data:
                made = self.data(named)
            else:
                made = _Made(named, files=users_file(named, here, data))
            flags[name] = made.path
            inputs.append(made)
        return flags, inputs


def _content(flags: Flags) -> dict[str, Value]:
    """What decides a job's result: its flags without the names of its output."""
    return {name: value for name, value in flags.items() if name not in OF_THE_STUDY}
