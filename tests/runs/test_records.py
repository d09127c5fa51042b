"""Scores, losses and predictions of a run: logged, cut back to a saved state, and read again."""

import json
from pathlib import Path

import pytest
from tiny_runs import ft_flags, rows

import ft_main
from src.config.errors import UserError
from src.config.flags.train import FineTuneArguments
from src.runs import folder, records
from src.runs.folder import RunFolder, open_run
from src.runs.records import append_predictions, check_records, read_run, truncate_records, write_predictions
from src.runs.trackers import CsvTracker


@pytest.fixture
def run(tmp_path) -> RunFolder:
    config = FineTuneArguments(output_dir=str(tmp_path / "out"), dataset_path="d.json")
    opened = open_run(config, {"dataset_path": "abc"})
    opened.begin(anew=True)
    return opened


# ------------------------------------------------------------------------------------------------------------ trackers


def test_rows(run):
    columns = ("split", "epoch", "bertscore_f1", "nll")
    run.log("eval_scores.csv", columns, {"split": "dev", "epoch": 0, "nll": 0.1})
    run.log("eval_scores.csv", columns, {"split": "test", "epoch": -1, "nll": 2.0, "bertscore_f1": 1 / 3})
    text = (run.path / "eval_scores.csv").read_bytes()
    assert text == b"split,epoch,bertscore_f1,nll\ndev,0,,0.1\ntest,-1,0.3333333333333333,2.0\n"
    assert rows(run.path)[1] == {"split": "test", "epoch": "-1", "bertscore_f1": "0.3333333333333333", "nll": "2.0"}


def test_a_column_that_was_not_announced_is_a_defect(run):
    with pytest.raises(ValueError, match="bleu"):
        run.log("eval_scores.csv", ("split",), {"split": "dev", "bleu": 1})


def test_a_tracker_of_another_kind(tiny_models, tiny_dataset_path, tmp_path, monkeypatch):
    """It gets every row of the CSV files, and is closed once, even if the run fails."""

    class Lists:
        def __init__(self):
            self.rows, self.closed = {"eval_scores.csv": [], "train_losses.csv": []}, 0

        def log(self, table, columns, row, step, more):
            self.rows[table].append({name: row.get(name) for name in columns})

        def close(self):
            self.closed += 1

    lists = Lists()
    monkeypatch.setattr(folder, "open_trackers", lambda path, *_: (CsvTracker(path), lists))
    ft_main.main(ft_flags(tiny_models["t5"]["student"], tiny_dataset_path, tmp_path / "out"))
    found = read_run(tmp_path / "out")
    assert lists.rows == {"eval_scores.csv": found.scores, "train_losses.csv": found.losses}
    assert lists.closed == 1
    run = open_run(FineTuneArguments(output_dir=str(tmp_path / "other"), dataset_path="d.json"), {})
    with pytest.raises(KeyboardInterrupt), run.held():
        run.begin(anew=True)
        raise KeyboardInterrupt
    assert lists.closed == 2


# ------------------------------------------------------------------------------------------------------- a saved state


@pytest.mark.parametrize(
    ("text", "count", "kept"),
    [
        ("a\n1\n2\n3\n", 2, "a\n1\n2\n"),
        ("a\n1\n2\n3\n", 3, "a\n1\n2\n3\n"),
        ("a\n1\n2\n3", 2, "a\n1\n2\n"),  # torn
        ("a\n1\n2\n", 0, ""),  # the header comes again with the first row
        ("a,", 0, ""),
        ("", 0, ""),
    ],
)
def test_rows_after_the_state_are_dropped(run, text, count, kept):
    (run.path / "train_losses.csv").write_text(text)
    truncate_records(run.path, 0, count)
    assert (run.path / "train_losses.csv").read_text() == kept
    run.log("train_losses.csv", ("a",), {"a": 9})
    assert rows(run.path, "train_losses.csv")[-1] == {"a": "9"}
    assert not (run.path / "eval_scores.csv").exists()


@pytest.mark.parametrize("text", ["a\n1\n2", "a\n1\n", "a\n", "", None])
def test_rows_that_the_state_counts_on_are_gone(run, text):
    """Going on would give a file with fewer rows than the run has evaluations; what is left stays as it is."""
    if text is not None:
        (run.path / "train_losses.csv").write_text(text)
    with pytest.raises(UserError, match=r"train_losses.csv: \d complete lines are left of the 3"):
        check_records(run.path, 0, 2, ())
    assert text is None or (run.path / "train_losses.csv").read_text() == text


def evaluate(run: RunFolder, split: str, epoch: int, step: int, predictions: list[str]) -> None:
    run.log("eval_scores.csv", ("split", "epoch", "step"), {"split": split, "epoch": epoch, "step": step})
    append_predictions(run.path, split, epoch, step, predictions)


def test_predictions(run):
    evaluate(run, "dev", 0, 3, ["a\n\u2028b", "é"])
    evaluate(run, "test", 0, 3, ["c"])
    evaluate(run, "dev", 1, 3, ["d", ""])
    truncate_records(run.path, 2, 0)
    with (run.path / "eval_generations.jsonl").open("a") as file:
        file.write('{"split": "de')  # killed while writing
    truncate_records(run.path, 2, 0)
    with pytest.raises(UserError, match=r"eval_generations.jsonl: 2 complete lines are left of the 3"):
        run.log("eval_scores.csv", ("split", "epoch", "step"), {"split": "dev"})
        check_records(run.path, 3, 0, ("dev", "test"))
    append_predictions(run.path, "test", -1, -1, ["e"])
    while_it_runs = read_run(run.path).predictions
    write_predictions(run.path, {"dev": ["A", "B"], "test": ["C"], "unlabeled": []})
    written = json.loads((run.path / "eval_generations.json").read_text(encoding="utf-8"))
    assert written == {
        "dev__epoch0__step3": {
            "split": "dev", "epoch": 0, "step": 3, "predictions": ["a\n\u2028b", "é"], "references": ["A", "B"]
        },
        "test__epoch0__step3": {"split": "test", "epoch": 0, "step": 3, "predictions": ["c"], "references": ["C"]},
        "test__epoch-1__step-1": {
            "split": "test", "epoch": -1, "step": -1, "predictions": ["e"], "references": ["C"]
        },
    }  # fmt: skip
    run.tidy()
    run.tidy()
    assert not (run.path / "eval_generations.jsonl").exists()
    assert read_run(run.path).predictions == list(written.values())
    assert [{name: value for name, value in each.items() if name != "references"} for each in written.values()] == (
        while_it_runs
    )


def test_dropping_predictions_is_all_or_nothing(run, monkeypatch):
    """Killed while lines are dropped, a run must not have lost those that are to be kept."""
    for epoch in range(4):
        evaluate(run, "dev", epoch, 0, [str(epoch)])
    before = (run.path / "eval_generations.jsonl").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    monkeypatch.setattr(records, "append_json_line", killed)
    with pytest.raises(KeyboardInterrupt):
        truncate_records(run.path, 3, 0)
    assert (run.path / "eval_generations.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("eval_scores.csv", b"dev,1,3,0.1x", "line 3, column 'nll': '0.1x' is not a number"),
        ("train_losses.csv", b"0,\xb2", "cannot be read: 'utf-8' codec can't decode byte 0xb2"),
        ("eval_generations.jsonl", b'{"split": {}, "epoch": 1, "step": 3, "predictions": []}', "line 2: does not hold"),
        ("eval_generations.jsonl", b'{"epoch": 1, "step": 3, "predictions": []}', "line 2: does not hold"),
        ("eval_generations.jsonl", b'{"split": "dew", "epoch": 1, "step": 3, "predictions": []}', "line 2: does not"),
    ],
)
def test_damaged_rows_of_the_state_are_refused(run, name, line, said):
    """They would stop the run at its end, when the files are read. Rows after the state are dropped unread."""
    for epoch in (0, 1):
        run.log("eval_scores.csv", ("split", "epoch", "step", "nll"), {"split": "dev", "epoch": epoch, "nll": 0.1})
        run.log("train_losses.csv", ("phase", "loss"), {"phase": 0, "loss": 0.5})
        append_predictions(run.path, "dev", epoch, 3, ["a"])
    check_records(run.path, 2, 2, ("dev",))
    lines = (run.path / name).read_bytes().splitlines(keepends=True)
    (run.path / name).write_bytes(b"".join([*lines[:-1], line + b"\n"]))
    check_records(run.path, 1, 1, ("dev",))
    with pytest.raises(UserError) as raised:
        check_records(run.path, 2, 2, ("dev",))
    assert f"{run.path / name}: {said}" in str(raised.value)
    truncate_records(run.path, 1, 1)
    assert (run.path / name).read_bytes() == b"".join(lines[:-1])


# -------------------------------------------------------------------------------------------------------------- reading


def test_a_row_that_a_kill_cut_off_is_not_read(run):
    (run.path / "train_losses.csv").write_text("phase,loss\n0,0.5\n0,1e-")
    assert read_run(run.path).losses == [{"phase": 0, "loss": 0.5}]


def test_a_run_is_read_from_its_folder(run):
    run.log("train_losses.csv", ("phase", "learned", "loss", "logits"), {"phase": 0, "learned": "1", "loss": 0.5})
    run.log("eval_scores.csv", ("split", "epoch", "ppl"), {"split": "dev", "epoch": 0, "ppl": float("inf")})
    found = read_run(run.path)
    assert (found.description.status, found.description.flags["dataset_path"]) == ("unfinished", "d.json")
    assert found.losses == [{"phase": 0, "learned": "1", "loss": 0.5, "logits": None}]
    assert found.scores == [{"split": "dev", "epoch": 0, "ppl": float("inf")}]
    assert found.predictions == []
    run.finish({"nll": 1, "ppl": float("nan")})
    assert read_run(str(run.path)).description.scores == {"nll": 1.0, "ppl": None}


def test_a_folder_without_a_run_is_not_read(tmp_path):
    with pytest.raises(UserError, match="holds no run: there is no run.json"):
        read_run(tmp_path)


def test_only_the_final_test_is_read(run):
    evaluate(run, "dev", 0, 3, ["a"])
    evaluate(run, "test", 1, 3, ["b"])
    append_predictions(run.path, "test", -1, -1, ["c"])
    write_predictions(run.path, {"dev": ["A"], "test": ["B"]})
    (final,) = read_run(run.path, only_final=True).predictions
    assert final == read_run(run.path).predictions[-1]
    assert (final["predictions"], final["references"]) == (["c"], ["B"])


def test_a_value_that_is_no_number(run):
    (run.path / "train_losses.csv").write_text("epoch,loss\n0,1.5\n1,high\n")
    with pytest.raises(UserError, match="train_losses.csv: line 3, column 'loss': 'high' is not a number"):
        read_run(run.path)
