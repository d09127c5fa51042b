"""Warnings about what scores alone do not say."""

from math import log

import pytest
from tiny_runs import ft_flags

import ft_main
from src.evaluation.sanity import of_copying, of_likelihood, of_loops, repeats_itself


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("", False),
        ("the the the", False),
        ("the the the the", True),
        ("a b a b a b a b", True),
        ("well a b a b a b a b", True),
        ("a b a b a b a", False),
        ("a b a b a b a b end", False),  # it got out of it
        ("a b c d e f g h " * 4, True),
        ("a b c d e f g h i " * 4, False),  # longer than a loop is
        ("ha ha ha", False),
    ],
)
def test_a_loop_at_the_end(text, repeats):
    assert repeats_itself(text) is repeats


def test_a_few_loops_are_no_reason():
    assert of_loops([]) is None
    assert of_loops(["no no no no"] * 5 + ["fine"] * 95) is None
    assert of_loops(["no no no no"] * 6 + ["fine"] * 94) == "6 of 100 predictions repeat the same words at their end"


def test_the_likelihood_of_a_uniform_distribution():
    assert of_likelihood(0.9 * log(1000), 1000) is None
    assert of_likelihood(log(1000), 1000) == (
        "nll 6.91 is that of a model that knows nothing (log of 1,000 tokens: 6.91)"
    )


def test_copying():
    texts, references = ["the red cat sees it", "a dog is here now"], ["the red cat sees you", "a dog is there now"]
    line = of_copying(3.0, texts, references)
    assert line is not None
    assert line.endswith("sacrebleu, the model 3.0")
    assert of_copying(99.0, texts, references) is None


def test_a_model_that_learnt_nothing_is_told_of(tiny_models, tiny_dataset_path, tmp_path, capsys):
    """A copy task: copying is perfect, and a random model is not."""
    flags = {"epochs": 1, "learning_rate": 1e-12, "max_labels_length": 12}
    ft_main.main(ft_flags(tiny_models["t5"]["student"], tiny_dataset_path, tmp_path / "out", **flags))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert [line.split(":")[1].strip() for line in said].count("dev") == 1
    assert any(line.startswith("warning: dev: nll ") and "knows nothing" in line for line in said)
    assert any("test: copying the input would score 100.0 sacrebleu" in line for line in said)
