"""Rules of the architecture, checked in the source: imports, names of model families, who writes to disk."""

import ast
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.models.families import FAMILIES

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in REPOSITORY.glob("*_main.py"))
SOURCES = sorted([*REPOSITORY.glob("src/**/*.py"), *(REPOSITORY / name for name in SCRIPTS)])
TREES = {str(path.relative_to(REPOSITORY)): ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}

# Each room may import itself and the rooms below it.
FLOORS = {
    "config": 0, "storage": 1, "devices": 1, "studies": 1, "data": 2, "runs": 3, "tokens": 3, "api": 4, "models": 4,
    "decoding": 5, "distillation": 6, "evaluation": 6, "profiling": 6, "training": 7, "reports": 7, "preflight": 8,
    "stages": 9, "scripts": 10,
}  # fmt: skip
LIGHT = {"src", "yaml", "tqdm"}  # all that config/ may import besides the standard library

# storage/ opens files for writing. These files fill folders that it hands out, or tidy a run's own folder, by the
# calls named here and no others.
WRITERS = {
    "src/data/writers.py": {"OSFile", "new_file"},
    "src/data/columnar_files.py": {"TemporaryFile", "new_file"},
    "src/data/spool.py": {"TemporaryFile", "new_file"},
    "src/decoding/ctranslate2_engine.py": {"TemporaryDirectory", "convert"},
    "src/models/adapters.py": {"save_file", "save_pretrained"},
    "src/models/folders.py": {"save_pretrained", "write_text"},
    "src/run_study.py": {"mkdir", "unlink"},
    "src/runs/folder.py": {"mkdir", "unlink"},
    "src/tokens/token_cache.py": {"open", "save"},
    "src/training/checkpoints.py": {"mkdir", "open", "replace", "save"},
}  # fmt: skip
IMPORT_ACCELERATE = ("src/devices/accelerator.py", "src/devices/trackers.py")
WRITING_CALLS = {
    "write_text", "write_bytes", "to_csv", "to_json", "to_parquet", "save_to_disk", "save_pretrained", "save_file",
    "savez", "savez_compressed", "savetxt", "tofile", "dump", "mkdir", "makedirs", "touch", "unlink", "rmdir",
    "rename", "renames", "truncate", "symlink_to", "hardlink_to", "new_file", "new_stream", "write_table",
    "write_feather", "write_dataset", "write_to_dataset", "write_csv", "ParquetWriter", "CSVWriter", "FileHandler",
    "output_stream", "open_output_stream", "create_memory_map", "NamedTemporaryFile", "TemporaryFile",
    "TemporaryDirectory", "mkstemp", "mkdtemp", "FileLock",
}  # fmt: skip
OPENING_CALLS = {"open", "fdopen", "OSFile", "memory_map", "ZipFile", "memmap", "open_memmap"}  # writing, by mode
QUALIFIED_CALLS = {"torch.save", "np.save", "numpy.save", "os.remove", "os.replace", "os.link", "os.symlink"}
MODULES_THAT_WRITE = {"os", "shutil", "tempfile"}  # imported as modules, so that their calls can be recognized
READING_SHUTIL = {"which", "disk_usage", "get_terminal_size"}

NAMES_ANYTHING = "src/models/families.py"
MAY_NAME = {  # file: what may be named there, and why
    "src/config/flags/create_student.py": {"t5", "bart", "gpt2", "opt", "llama"},  # the choices of --family
    "src/config/flags/shared.py": {"bart"},  # --task_prompt bart
    **{f"src/config/flags/{name}.py": {"t5"} for name in ("generate", "prepare", "train")},  # t5-small, a default
    "src/models/new_models.py": {"t5", "bart", "gpt2", "opt", "llama"},  # how each is built from scratch
    "src/tokens/task_prompt.py": {"bart"},  # the value of --task_prompt that means none
}
BARE_BOOLEANS = ("getattr", "get", "flag", "requires_grad_")  # calls that take one without saying what it is


def room(path: str) -> str:
    parts = path.split("/")
    if parts[0] != "src":
        return "scripts"
    return parts[1] if len(parts) > 2 else "stages"


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module a file imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield str(node.module)
            if node.module == "src" or str(node.module).startswith("src."):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(tree: ast.AST) -> set[str]:
    """Paths of this project's files that a file imports."""
    paths = (f"{name.replace('.', '/')}{ending}" for name in imported(tree) for ending in (".py", "/__init__.py"))
    return {path for path in paths if path in TREES and path != "src/__init__.py"}


@pytest.mark.parametrize("path", TREES)
def test_imports_point_down(path):
    for other in own_modules(TREES[path]):
        same_room = room(path) == room(other) not in ("stages", "scripts")
        assert same_room or FLOORS[room(other)] < FLOORS[room(path)], f"{path} imports {other}"


def test_no_two_files_import_each_other():
    arrows = {(path, other) for path in TREES for other in own_modules(TREES[path]) - {path}}
    assert [pair for pair in arrows if pair[::-1] in arrows] == []


def test_the_table_of_rooms_is_complete():
    assert {room(path) for path in TREES if path != "src/__init__.py"} == set(FLOORS)
    assert own_modules(TREES["src/training/engine.py"]) >= {"src/training/rhythm.py", "src/tokens/order.py"}


@pytest.mark.parametrize("path", [path for path in TREES if room(path) == "config"])
def test_config_is_light(path):
    outside = {name.partition(".")[0] for name in imported(TREES[path])} - set(sys.stdlib_module_names)
    assert outside <= LIGHT


def test_a_report_needs_no_torch():
    """What a run has left is read in a moment, and where no model libraries are installed."""
    code = "import sys, src.runs.folder, src.runs.records, src.runs.trackers, src.report, src.reports.page\n"
    code += "print({'torch', 'transformers', 'accelerate', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("path", [path for path in TREES if path not in IMPORT_ACCELERATE])
def test_only_devices_import_accelerate(path):
    assert "accelerate" not in {name.partition(".")[0] for name in imported(TREES[path])}


def written_by(node: ast.AST) -> str | None:
    """The name of the function if a node is a call that can change the disk."""
    if not isinstance(node, ast.Call):
        return None
    whole = ast.unparse(node.func)
    name = whole.rpartition(".")[2]
    if name in OPENING_CALLS:
        arguments = [*node.args, *(keyword.value for keyword in node.keywords)]
        words = [each.value for each in arguments if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        has_mode = any(re.fullmatch(r"[rwaxbt+]+", word) and set(word) & set("wax+") for word in words)
        is_writing = has_mode or any(flag in ast.unparse(node) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))
    elif name == "replace" and whole != "os.replace":
        is_writing = "." in whole and len(node.args) == 1 and not node.keywords  # Path.replace; str.replace takes two
    elif name == "convert":
        is_writing = "Converter" in whole
    else:
        is_in_shutil = whole.startswith("shutil.") and name not in READING_SHUTIL
        is_writing = name in WRITING_CALLS or whole in QUALIFIED_CALLS or is_in_shutil
    return name if is_writing else None


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.open('w')", True),
        ("path.open(mode='ab')", True),
        ("open(path, 'rb+')", True),
        ("path.open()", False),
        ("path.open('rb')", False),
        ("path.open(encoding='utf-8')", False),
        ("temporary.replace(path)", True),
        ("text.replace('a', 'b')", False),
        ("replace(entry, weight=1)", False),
        ("torch.save(x, path)", True),
        ("self.states.save(x, y)", False),
        ("model.save_pretrained(folder)", True),
        ("checkpoints.remove(folder)", False),
        ("shutil.rmtree(folder)", True),
        ("path.read_text()", False),
        ("pyarrow.OSFile(path, 'wb')", True),
        ("pyarrow.OSFile(path)", False),
        ("pa.ipc.new_file(path, schema)", True),
        ("pyarrow.memory_map(path)", False),
        ("pyarrow.memory_map(path, 'r+')", True),
        ("pq.write_table(table, path)", True),
        ("np.savez(path, a=a)", True),
        ("np.save(path, a)", True),
        ("np.memmap(path, mode='w+')", True),
        ("shutil.copy(source, path)", True),
        ("shutil.copyfileobj(source, file)", True),
        ("shutil.disk_usage(path)", False),
        ("os.replace(temporary, path)", True),
        ("os.open(path, os.O_RDONLY)", False),
        ("os.open(path, os.O_RDWR | os.O_CREAT)", True),
        ("ZipFile(path, 'w')", True),
        ("ZipFile(path)", False),
        ("tempfile.TemporaryDirectory()", True),
        ("TransformersConverter(model).convert(folder)", True),
        ("convert(written, int, where)", False),
    ],
)
def test_what_counts_as_writing(code, found):
    assert (written_by(ast.parse(code, mode="eval").body) is not None) is found


@pytest.mark.parametrize("path", [path for path in TREES if room(path) != "storage"])
def test_files_are_written_by_storage_and_by_those_that_fill_its_folders(path):
    assert {written_by(node) for node in ast.walk(TREES[path])} - {None} == WRITERS.get(path, set())
    for node in ast.walk(TREES[path]):
        assert not (isinstance(node, ast.ImportFrom) and node.module in MODULES_THAT_WRITE), ast.unparse(node)


def docstrings(tree: ast.AST) -> set[ast.AST]:
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, nodes) and ast.get_docstring(node) is not None]
    return {body[0].value for body in bodies if isinstance(body[0], ast.Expr)}


def words_of_code(tree: ast.AST) -> Iterator[str]:
    """Identifiers and texts of a file, docstrings and comments left out."""
    skipped = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in skipped:
            yield node.value
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name


def family_names() -> set[str]:
    return {name for family in FAMILIES for name in (family.name, *family.model_types)}


def named_families(text: str) -> set[str]:
    """Family names in an identifier or a text: `t5-small`, `BartConfig`, `is_gpt2`; not the parts of longer words."""
    parts = re.findall(r"[A-Z]*[a-z0-9]+|[A-Z0-9]+", text)
    return {part.lower() for part in parts} & family_names()


def test_what_counts_as_naming_a_family():
    assert named_families("t5-small") == named_families("is_t5") == {"t5"}
    assert named_families("BartForConditionalGeneration") == {"bart"}
    assert named_families("Bartholomew optimizer adopt") == set()


@pytest.mark.parametrize("path", [path for path in TREES if path != NAMES_ANYTHING])
def test_only_families_names_a_model_family(path):
    named = set().union(*map(named_families, words_of_code(TREES[path])))
    assert named <= MAY_NAME.get(path, set())


@pytest.mark.parametrize("path", TREES)
def test_no_swallowed_exceptions_and_nothing_is_executed(path):
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ExceptHandler):
            caught = {name.id for name in ast.walk(node.type) if isinstance(name, ast.Name)} if node.type else {"all"}
            assert not caught & {"all", "Exception", "BaseException"}, f"line {node.lineno}"
            assert not all(isinstance(step, ast.Pass) for step in node.body), f"line {node.lineno}"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("eval", "exec", "pickle.load", "pickle.loads", "os.system")
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                assert (keyword.arg, value) not in {("weights_only", False), ("trust_remote_code", True)}
                assert (keyword.arg, value) != ("shell", True)
            if ast.unparse(node.func) == "torch.load":
                assert "weights_only" in {keyword.arg for keyword in node.keywords}


@pytest.mark.parametrize("path", TREES)
def test_manner(path):
    """A module docstring, no star imports, and no call with a bare True or False, which says nothing to the reader."""
    tree = TREES[path]
    assert ast.get_docstring(tree) or not tree.body, "no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert "*" not in {alias.name for alias in node.names}
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] not in BARE_BOOLEANS:
            values = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            assert not {type(value) for value in values} & {bool}, f"line {node.lineno}: {ast.unparse(node)}"


def test_the_folder_datasets_is_no_package():
    """It shares its name with a library, which a package here would shadow."""
    assert not (REPOSITORY / "datasets" / "__init__.py").exists()
    assert not (REPOSITORY / "datasets.py").exists()


def test_every_published_script_is_there():
    published = {"ft_main.py", "gen_main.py", "kd_main.py", "prepare_datasets_main.py"}
    assert published <= set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_quick_and_light(script):
    """CPU time, not seconds on the wall: the machine that tests may be busy."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{script}', '--help']\n"
        "try:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as stop:\n    heavy = {'torch', 'transformers', 'datasets', 'numpy', 'yaml'}\n"
        "    print('status', stop.code, 'heavy', sorted(heavy & set(sys.modules)))\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "status 0 heavy []"
    assert f"usage: python {script}" in done.stdout
    assert not done.stderr
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1.5
