"""Demo study: its commands parse and fit together, and its table is right. Every benchmark script starts."""

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ARGUMENTS

from src.config.cli import parse
from src.config.flags.base import REPOSITORY


def benchmark(name: str) -> ModuleType:
    """A script of benchmarks/, which is a folder of scripts and no package."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "benchmarks" / f"{name}.py")
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


demo = benchmark("demo")
experiments = benchmark("experiments")
quality = benchmark("quality")

OUT = Path("out")
ROWS = [
    demo.Row("teacher", 80.0, 0.4, 250_000, 100.0),
    demo.Row("fine-tuned", 40.0, 1.4, 100_000, 200.0),
    demo.Row("distilled", 70.0, 0.65, 100_000, 210.4),
]


@pytest.mark.parametrize("script", sorted((REPOSITORY / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_benchmark_starts_from_any_folder(script, tmp_path):
    subprocess.run([sys.executable, script, "--help"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)


def test_the_patches_of_the_variations_fit_the_code():
    patches = "\n".join(each.patch for each in quality.VARIATIONS.values())
    subprocess.run([sys.executable, "-c", patches], cwd=REPOSITORY, check=True)


def jobs() -> list:
    return [job for group in demo.study(OUT, seed=7) for job in group]


@pytest.mark.parametrize("job", jobs(), ids=lambda job: job.name)
def test_every_command_parses_and_is_seeded(job):
    config = parse(ARGUMENTS[job.script], shlex.split(job.flags))
    assert config.seed == (8 if job.name == "data teacher" else 7)
    assert (OUT / job.result).is_relative_to(config.output_dir)


def test_a_group_reads_only_what_earlier_groups_wrote():
    there: list[Path] = []
    for group in demo.study(OUT, seed=7):
        for job in group:
            for word in shlex.split(job.flags):
                if word.startswith(f"{OUT}/") and f"--output_dir {word}" not in job.flags:
                    assert any(Path(word).is_relative_to(result) for result in there), (job.name, word)
        there += [OUT / job.result for job in group]


def test_the_table_has_every_model_that_was_tested():
    assert set(demo.MODELS) <= {job.name for job in jobs()}


def test_gap_closed():
    cells = [dict(zip(demo.COLUMNS, line, strict=True)) for line in demo.cells(ROWS)]
    assert [line["gap closed % (BLEU)"] for line in cells] == ["100", "0", "75"]
    assert [line["gap closed % (NLL)"] for line in cells] == ["100", "0", "75"]
    assert cells[2]["parameters"] == "100,000"


def test_no_gap_has_no_share():
    same = [ROWS[0], demo.Row("fine-tuned", 80.0, 0.4, 1, 1.0)]
    assert [line[3:5] for line in demo.cells(same)] == [("-", "-"), ("-", "-")]


def test_the_table_is_left_as_files(tmp_path, capsys):
    demo.write_table([demo.COLUMNS, *demo.cells(ROWS)], tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert len({len(line) for line in text.splitlines()}) == 1  # columns stand under each other
    assert (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()[
        3
    ] == 'distilled,70.0,0.650,75,75,"100,000",210'


def test_a_failing_command_ends_the_study(tmp_path, capsys):
    job = demo.Job("broken", "ft_main.py", "--no_such_flag 1", "broken/model")
    with pytest.raises(SystemExit) as stopped:
        demo.run(job, tmp_path, threads=1)
    assert stopped.value.code == 2
    assert "unknown flag" in capsys.readouterr().err


def test_a_finished_command_is_not_run_again(tmp_path, capsys):
    (tmp_path / "result").mkdir()
    demo.run(demo.Job("done", "no_such_script.py", "", "result"), tmp_path, threads=1)
    assert "already done" in capsys.readouterr().out


@pytest.mark.parametrize("job", [job for group in experiments.students(OUT, 7) for job in group], ids=lambda j: j.name)
def test_every_student_of_the_nine_experiments_parses(job):
    config = parse(ARGUMENTS[job.script], shlex.split(job.flags))
    assert config.seed == 7
    assert (OUT / job.result).is_relative_to(config.output_dir)
    assert job.name in ("start", config.__dict__.get("experiment_config_key"))


def test_the_start_of_the_nine_experiments_is_jobs_of_the_demo():
    assert set(experiments.SETUP) <= {job.name for job in jobs()}


def test_a_line_of_the_nine_experiments(tmp_path):
    """Two seeds: means, and how often a student beats fine-tuning by each score."""
    scores = dict.fromkeys(("teacher_test", *experiments.experiments()), (50.0, 1.0))
    for seed, kd in enumerate([(60.0, 1.5), (40.0, 0.5)]):
        for name, (bleu, nll) in (scores | {"logits_kd": kd}).items():
            (tmp_path / str(seed) / name).mkdir(parents=True)
            (tmp_path / str(seed) / name / "run.json").write_text(
                json.dumps({"scores": {"sacrebleu": bleu, "nll": nll}})
            )
    lines = {line[0]: line[1:] for line in experiments.rows([tmp_path / "0", tmp_path / "1"])}
    assert lines["logits_kd"] == ("60.0  40.0", "50.0", "1.500  0.500", "1.000", "BLEU 1/2, NLL 1/2")
    assert lines["teacher"][-1] == lines["finetuning"][-1] == "-"
