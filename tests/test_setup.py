"""Setup files: every import is pinned, conda installs the same pins, the Makefile lists its targets."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RUNTIME, DEVELOPMENT = "requirements.txt", "requirements-dev.txt"
ENGINE, BENCHMARKS = "requirements-ctranslate2.txt", "requirements-bench.txt"  # of those who want them
EXTRAS, STUDIES = "requirements-extras.txt", "requirements-study.txt"
PIN = re.compile(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*")


def requirement_lines(file: str) -> list[str]:
    lines = (line.strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def pinned_names(*files: str) -> set[str]:
    return {normalized(line.partition("==")[0]) for file in files for line in requirement_lines(file)}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported_modules(*patterns: str) -> dict[str, Path]:
    """{top-level module: a file that imports it} of every import that leaves the repository and Python itself."""
    at_home = {
        "src",
        "tests",
        "benchmarks",
        *(path.stem for path in [*ROOT.glob("*.py"), *ROOT.glob("tests/*.py"), *ROOT.glob("benchmarks/*.py")]),
    }
    found = {}
    for file in (file for pattern in patterns for file in ROOT.glob(pattern)):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            found |= {name.partition(".")[0]: file.relative_to(ROOT) for name in names}
    return {name: file for name, file in found.items() if name not in at_home and name not in sys.stdlib_module_names}


@pytest.mark.parametrize(
    ("patterns", "files"),
    [
        pytest.param(("*.py", "src/**/*.py", "benchmarks/*.py"), (RUNTIME, ENGINE, EXTRAS, STUDIES), id="scripts"),
        pytest.param(("benchmarks/**/*.py",), (RUNTIME, ENGINE, BENCHMARKS, STUDIES), id="benchmarks"),
        pytest.param(("tests/**/*.py",), (RUNTIME, DEVELOPMENT), id="tests"),
    ],
)
def test_every_import_is_pinned(patterns, files):
    distributions, pinned = packages_distributions(), pinned_names(*files)
    modules = imported_modules(*patterns)
    assert "torch" in modules
    unpinned = {
        module: file
        for module, file in modules.items()
        if pinned.isdisjoint(normalized(name) for name in distributions.get(module, [module]))
    }
    assert not unpinned


@pytest.mark.parametrize("file", [RUNTIME, DEVELOPMENT, ENGINE, EXTRAS, BENCHMARKS, STUDIES])
def test_pins_are_exact(file):
    lines = requirement_lines(file)
    assert lines
    assert [line for line in lines if not PIN.fullmatch(line)] == []


def test_conda_installs_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "kd"
    assert "python=3.11" in environment["dependencies"]
    assert {"pip": [f"-r {RUNTIME}", f"-r {STUDIES}", f"-r {DEVELOPMENT}"]} in environment["dependencies"]


def test_the_makefile_says_what_each_target_does():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)[1].split()
    explained = re.findall(r"^([a-z-]+):.*## [A-Z].*\.$", makefile, re.MULTILINE)
    assert explained == phony
