"""Statistics against hand-computed values and against the libraries' own results."""

from statistics import stdev

import numpy as np
import pytest
from made_runs import FINE_TUNED_TEXTS, REFERENCES, STUDENT_TEXTS, TEACHER_TEXTS, write_run, write_study
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest, estimate_ci

from src.reports import statistics
from src.reports.collect import collect
from src.reports.comparison import build_comparisons
from src.reports.plots import pareto_front
from src.reports.statistics import Bootstrap, Mean, gap_closed

MIXED_TEXTS = STUDENT_TEXTS[:3] + TEACHER_TEXTS[3:]


def two_runs(tmp_path, **flags):
    write_run(tmp_path / "a", "ft_main.py", MIXED_TEXTS, **flags)
    write_run(tmp_path / "b", "ft_main.py", FINE_TUNED_TEXTS, **flags)
    return collect([tmp_path]).compared


def test_mean():
    assert Mean.of([1.0, 2.0, 6.0]) == Mean(3.0, stdev([1, 2, 6]), 3)
    assert Mean.of([2.0]) == Mean(2.0, None, 1)
    assert Mean.of([]) is None


@pytest.mark.parametrize(
    ("values", "start", "goal", "score", "closed"),
    [
        ([30.0], 20.0, 40.0, "sacrebleu", Mean(50.0, None, 1)),
        ([10.0, 40.0], 20.0, 40.0, "sacrebleu", Mean(25.0, stdev([-50, 100]), 2)),
        ([1.5], 2.0, 1.0, "nll", Mean(50.0, None, 1)),
        ([1.5], 1.0, 2.0, "nll", None),  # the teacher is worse
        ([30.0], 20.0, 20.0, "sacrebleu", None),
    ],
)
def test_gap_closed(values, start, goal, score, closed):
    assert gap_closed(values, start, goal, score) == closed


@pytest.mark.parametrize(("score", "metric"), [("sacrebleu", BLEU(force=True)), ("chrf", CHRF())])
def test_resamples_are_those_of_sacrebleu(tmp_path, score, metric):
    """The samples of a run give the mean and the interval of PairedTest, and the scores are those of the run."""
    run, other = two_runs(tmp_path)
    _, results = PairedTest(
        [("b", FINE_TUNED_TEXTS), ("a", MIXED_TEXTS)], {"m": metric}, [REFERENCES], test_type="bs"
    )()
    expected = next(each for name, each in results.items() if name != "System")[1]
    samples = Bootstrap(1).samples(run, score)
    assert samples[0] == pytest.approx(run.scores[score])
    assert estimate_ci(samples[1:]) == pytest.approx((expected.mean, expected.ci), rel=1e-5)
    difference = Bootstrap(1).difference([(run, other)], score)
    assert difference.value == pytest.approx(run.scores[score] - other.scores[score])
    assert difference.low < difference.value < difference.high


def test_an_interval_of_rows(tmp_path):
    """WER is a mean over rows: its interval is scipy's, of the mean row difference."""
    run, other = two_runs(tmp_path)
    rows = Bootstrap(7).row_scores(run, "wer") - Bootstrap(7).row_scores(other, "wer")
    difference = Bootstrap(7).difference([(run, other), (run, other)], "wer")
    assert difference.value == pytest.approx(rows.mean())
    assert rows.min() <= difference.low <= difference.value <= difference.high <= rows.max()
    assert Bootstrap(7).difference([(run, other)], "wer") == difference
    assert Bootstrap(7).difference([(run, other)], "nll") is None


def test_equal_texts_differ_in_nothing(tmp_path):
    run, _ = two_runs(tmp_path)
    for score in ("sacrebleu", "wer"):
        difference = Bootstrap(1).difference([(run, run)], score)
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)
    assert Bootstrap(1).wins([(run, run)]) == statistics.Wins(0, 100, 0)


def test_several_references(tmp_path):
    several = [[text] if i else [text, "the the cat ."] for i, text in enumerate(REFERENCES)]
    run, other = two_runs(tmp_path, references=several)
    wins = Bootstrap(1).wins([(run, other)])
    assert (wins.better, wins.worse) == pytest.approx((500 / 6, 100 / 6))  # of the first row the other wins
    assert Bootstrap(1).difference([(run, other)], "chrf").value == pytest.approx(
        run.scores["chrf"] - other.scores["chrf"]
    )


def test_a_large_test_set_has_fewer_resamples():
    assert [statistics._n_resamples(n) for n in (1, 10_000, 50_000, 10**9)] == [1000, 1000, 200, 100]


def test_a_study(tmp_path):
    (comparison,) = build_comparisons(collect([write_study(tmp_path)]).compared, [], score=None, bootstrap=Bootstrap(1))
    teacher, baseline, plain, pseudo = comparison.rows
    assert comparison.main == "sacrebleu"
    assert comparison.best is pseudo
    assert baseline.scores["nll"].value == pytest.approx(2.015)
    assert baseline.scores["nll"].deviation == pytest.approx(np.std([2.01, 2.02], ddof=1))
    assert pseudo.gaps["nll"].value == pytest.approx(100 * (1.5 - 2.015) / (1.0 - 2.015))
    assert plain.gaps["nll"].value < pseudo.gaps["nll"].value
    assert plain.wins.equal == pytest.approx(100 * 2 / 6)
    assert not teacher.gaps
    assert (teacher.size.parameters, pseudo.size.parameters, plain.size.parameters) == (1000, 250, None)


def test_another_test_set_is_another_study(tmp_path):
    write_study(tmp_path, seeds=(1,))
    write_run(tmp_path / "x", "kd_main.py", STUDENT_TEXTS[:3], references=REFERENCES[:3], experiment_config_key="k")
    comparisons = build_comparisons(collect([tmp_path]).compared, [], score="nll", bootstrap=Bootstrap(1))
    assert [(each.n_test_rows, len(each.rows), each.main) for each in comparisons] == [(6, 4, "nll"), (3, 1, "nll")]
    assert "No gap for k: no finished run that trained or scored the teacher" in comparisons[1].notes[0]


def test_a_score_of_another_definition_is_left_out(tmp_path):
    write_study(tmp_path, seeds=(1,))
    for name in ("teacher", "s1/ft", "s1/kd", "s1/kd_pt"):
        (run,) = collect([tmp_path / name]).compared
        run.records.description.score_definitions["sacrebleu"] = f"tok:13a|version:{len(name)}"
        if name == "s1/kd":
            run.records.description.score_definitions["sacrebleu"] = "tok:zh"
        run.records.description.write(tmp_path / name)
    (comparison,) = build_comparisons(collect([tmp_path]).compared, [], score=None, bootstrap=Bootstrap(1))
    (note,) = comparison.notes
    assert f"sacrebleu of {tmp_path / 's1/kd'} is left out: it is `tok:zh`, elsewhere `tok:13a`" in note
    assert ["sacrebleu" in row.scores for row in comparison.rows] == [True, True, False, True]


def test_pareto_front():
    assert pareto_front([1, 2, 3, 3], [10, 30, 20, 40], lower_is_better=False) == [0, 1, 3]
    assert pareto_front([1, 2, 2], [3, 3, 1], lower_is_better=True) == [0, 2]
    assert pareto_front([1, 1], [2, 2], lower_is_better=True) == [0, 1]
