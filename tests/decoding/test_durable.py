"""The progress file of an interrupted generation: which lines continue it, and which are refused."""

import json
from pathlib import Path

import pytest
from tiny_runs import gen_flags, read, tree

import gen_main
from src.config.cli import run_script
from src.decoding.generator import TargetGenerator

PROGRESS = "generated_datasets.partial.jsonl"


@pytest.fixture
def interrupted(tiny_models, rotation_path, tmp_path, monkeypatch) -> tuple[list[str], Path]:
    """A command, and the folder in which it was stopped after two batches."""
    out = tmp_path / "out"
    kinds = {"generation_type": "sampling", "num_return_sequences": 2, "split_for_generation": ("train_0",)}
    flags = gen_flags(tiny_models["t5"]["student"], rotation_path, out, **kinds)
    generate, n_calls = TargetGenerator.generate, []

    def stop_at_third(self, *given):
        n_calls.append(1)
        if len(n_calls) == 3:
            raise KeyboardInterrupt
        return generate(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(TargetGenerator, "generate", stop_at_third)
        assert run_script(gen_main.main, flags) == 130
    return flags, out


def lines_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / PROGRESS).read_text().splitlines()]


def write_lines(out: Path, lines: list) -> None:
    (out / PROGRESS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_lines_of_earlier_versions_continue(interrupted, capsys):
    """They have a checksum, or texts without reasons."""
    flags, out = interrupted
    first, second = lines_of(out)
    texts = [text for text, _reason in second["targets"]]
    write_lines(out, [first | {"crc": 1}, second | {"targets": texts, "crc": 2}])
    gen_main.main(flags)
    assert "continuing: 16 of 20 targets are there" in capsys.readouterr().out
    generated = read(out / "generated_datasets.json")["train_0"]["generated"]
    assert len(generated) == 20
    for line in (first, second | {"targets": [(text, None) for text in texts]}):
        written = [generated[2 * row + i] for row in line["rows"] for i in (0, 1)]
        assert written == [text for text, _reason in line["targets"]]


@pytest.mark.parametrize(
    "damage",
    [
        {"targets": [["a", "stop"]]},  # fewer than two for each of four rows
        {"targets": None},
        {"rows": [0, 1, 2, 10]},  # the split has ten rows
        {"rows": [0, 1, 2, [3]]},
        {"rows": [], "targets": []},
        {"split": "train_9"},
        {"split": ["train_0"]},
        {"batch": {"1": 1}},
        {"targets": [["a", "stop"]] * 7 + [["a", 1]]},
        {"targets": [["a", "stop"]] * 7 + [False]},
        None,
    ],
)
def test_a_line_that_is_no_batch_of_the_run_is_refused(interrupted, capsys, damage):
    flags, out = interrupted
    first, second = lines_of(out)
    write_lines(out, [first, None if damage is None else second | damage])
    before = tree(out)
    said = (
        f"{out / PROGRESS}: line 2: does not hold the results of a batch of this run. Delete this line; its batch will "
        "be generated again"
    )
    for dry in ([], ["--dry_run", "True"]):
        capsys.readouterr()
        assert run_script(gen_main.main, [*flags, *dry]) == 2
        assert said in capsys.readouterr().err
        assert tree(out).keys() == before.keys()
    write_lines(out, [first])
    gen_main.main(flags)
    assert len(read(out / "generated_datasets.json")["train_0"]["generated"]) == 20
