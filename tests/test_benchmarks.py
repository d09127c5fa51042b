"""Benchmarks: every script starts; commands run once, and a failing one ends them; the table is written as files."""

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest

from src.config.flags.base import REPOSITORY


def benchmark(name: str) -> ModuleType:
    """A script of benchmarks/, which is a folder of scripts and no package."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


commands = benchmark("commands")
quality = benchmark("quality")
LINES = [("model", "BLEU"), ("teacher", "80.0"), ("a distilled student", "70.0")]


@pytest.mark.parametrize("script", sorted((REPOSITORY / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_starts_from_any_folder(script, tmp_path):
    subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


def test_the_patches_of_the_variations_fit_the_code():
    patches = "\n".join(each.patch for each in quality.VARIATIONS.values())
    subprocess.run([sys.executable, "-c", patches], cwd=REPOSITORY, check=True)


def test_the_table_is_left_as_files(tmp_path, capsys):
    commands.write_table(LINES, tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert len({len(line) for line in text.splitlines()}) == 1  # columns stand under each other
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()[2] == "a distilled student,70.0"


def test_a_failing_command_ends_the_study(tmp_path, capsys):
    job = commands.Job("broken", "ft_main.py", "--no_such_flag 1", "broken/model")
    with pytest.raises(SystemExit) as stopped:
        commands.run(job, tmp_path, threads=1)
    assert stopped.value.code == 2
    assert "unknown flag" in capsys.readouterr().err


def test_a_finished_command_is_not_run_again(tmp_path, capsys):
    (tmp_path / "result").mkdir()
    commands.run(commands.Job("done", "no_such_script.py", "", "result"), tmp_path, threads=1)
    assert "already done" in capsys.readouterr().out
