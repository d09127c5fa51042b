"""Values and gradients equal those recorded from the published suite, on the models stored beside them."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.golden import __main__ as checker
from tests.golden.compare import Deviation, deviations, read_cases

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = read_cases(GOLDEN)


def test_the_record_is_complete():
    """Thirty cases of each family, every experiment of the YAML among them."""
    assert Counter(case["family"] for case in CASES) == {"t5": 30, "bart": 30}
    weights = [key for key in CASES[0]["config"] if key.endswith("_weight")]
    for key in weights:
        assert any(case["config"][key] for case in CASES), key
    assert any(case["loss_scales"] for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['family']}-{case['name']}")
def test_loss_and_gradients_are_the_published_ones(case):
    numbers = list(deviations(GOLDEN, case))
    assert len(numbers) >= 2 + len(case["items"]) + len(case["grad_l2"]) - 1
    assert [str(number) for number in numbers if number.is_off] == []


def test_a_number_that_is_missing_is_off():
    assert Deviation("case", "loss", float("nan"), 1.0, 1e-5).is_off
    assert Deviation("case", "loss", 1.0, float("nan"), 1e-5).is_off
    assert not Deviation("case", "loss", 1.0, 1.0 + 9e-6, 1e-5).is_off


@pytest.fixture
def record(tmp_path) -> Path:
    """A record of two cases with the models of one family, to be tampered with."""
    for role in ("student", "teacher"):
        shutil.copytree(GOLDEN / f"t5_{role}", tmp_path / f"t5_{role}")
    chosen = [case for case in CASES if case["family"] == "t5" and case["name"] in ("mixed", "rmse_hidden")]
    (tmp_path / "golden.json").write_text(json.dumps({"cases": chosen}), encoding="utf-8")
    return tmp_path


def test_the_checker_accepts_any_folder_of_the_format(record, capsys):
    assert checker.main([str(record)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 2 cases within tolerance"


@pytest.mark.parametrize("key", ["loss", "items", "grad_l2"])
def test_the_checker_names_the_worst_last_and_exits_1(record, capsys, key):
    cases = read_cases(record)
    if key == "loss":
        cases[1]["loss"] += 2e-5
        name = "loss"
    else:
        name = list(cases[1][key])[-1]
        cases[1][key][name] *= 1.01
    (record / "golden.json").write_text(json.dumps({"cases": cases}), encoding="utf-8")
    assert checker.main([str(record)]) == 1
    *_, worst, summary = capsys.readouterr().out.splitlines()
    assert name in worst and cases[1]["name"] in worst
    assert summary == "1 of 2 cases within tolerance"


def test_a_term_that_the_record_lacks_is_off(record, capsys):
    cases = read_cases(record)
    del cases[0]["items"][next(iter(cases[0]["items"]))]
    (record / "golden.json").write_text(json.dumps({"cases": cases}), encoding="utf-8")
    assert checker.main([str(record)]) == 1


def test_a_folder_without_a_record_gives_one_line(tmp_path, capsys):
    assert checker.main([str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    (tmp_path / "golden.json").write_text('{"cases": []}', encoding="utf-8")
    assert checker.main([str(tmp_path)]) == 1, "nothing checked is nothing shown"
