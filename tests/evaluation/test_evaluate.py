"""Evaluate a model on a split: predictions, likelihood, and no side effects."""

import copy
import math
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)

from src.config.signals import Interrupted, StopRequests
from src.decoding.generate import to_texts, write_tokens
from src.decoding.settings import decoding_of
from src.evaluation import evaluate
from src.evaluation.evaluate import Evaluator
from src.models.loading import load_model
from src.tokens.batch import collate
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedDatasets, TokenizedSplit

KINDS = ("t5", "gpt2")
METRICS = ("rouge", "chrf")
DEV = {
    "text": ["the cat sees a dog", "a bird", "the old house near the red house", "", "new dog", "a cat likes the bird"],
    "target": ["dog", "the bird likes a new old house near the cat", "", "red", "the dog sees", "a"],
}
DEV_PPL = {"text": ["red bird", "a new dog finds the cat", "house"], "target": ["blue", "the cat", "a red house"]}


def restless(model, seed: int = 0):
    """The same model with large random weights, so that what it writes depends on what it reads."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.7 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def models(tiny_models) -> dict:
    return {family: restless(load_model(tiny_models[family]["teacher"])) for family in KINDS}


@pytest.fixture(scope="module")
def data(tiny_tokenizers) -> dict[str, TokenizedDatasets]:
    """{family: dev and dev_ppl}"""
    made = {}
    for family in KINDS:
        tokenizer = tiny_tokenizers[family]
        preprocessor = Preprocessor(tokenizer, family == "t5", 64, 32, "summarize:")
        made[family] = TokenizedDatasets({"dev": DEV, "dev_ppl": DEV_PPL}, preprocessor)
    return made


def evaluator(data: TokenizedDatasets, *, batch_size: int = 4, stop=None, metrics=METRICS) -> Evaluator:
    decoding = decoding_of("beam_search", num_beams=2, targets_per_input=1, max_new_tokens=6)
    return Evaluator(data.preprocessor, decoding, metrics, batch_size, stop or StopRequests())


def token_losses(model, data: TokenizedDatasets, split: TokenizedSplit) -> list[torch.Tensor]:
    """For each row its tokens' losses, from the row alone, unpadded, by the model's plain forward."""
    losses = []
    for row in range(len(split)):
        ids, labels = (
            torch.tensor(each, dtype=torch.long)[None]
            for each in (split.inputs[split.input_of_row[row]], split.labels[row])
        )
        with torch.no_grad():
            if model.config.is_encoder_decoder:
                logits = model(input_ids=ids, labels=labels).logits[0]
            else:
                logits = model(input_ids=torch.cat([ids, labels], dim=1)).logits[0, ids.shape[1] - 1 : -1]
        losses.append(F.cross_entropy(logits, labels[0], reduction="none"))
    return losses


def test_a_batch_goes_to_the_device_of_its_model(data, monkeypatch):
    """With --teacher_device that is not the student's."""
    devices = []

    def write(_model, batch, _decoding):
        devices.append(batch.input_ids.device.type)
        return torch.zeros(len(batch.rows), 1, dtype=torch.long)

    monkeypatch.setattr(evaluate, "write_tokens", write)
    elsewhere = SimpleNamespace(device=torch.device("meta"))
    evaluator(data["t5"]).write(elsewhere, data["t5"].split("dev"), np.arange(2))
    assert devices == ["meta"]


# ----------------------------------------------------------------------------------------------------------- likelihood


@pytest.mark.parametrize("batch_size", [1, 2, 4, 6, 100])
@pytest.mark.parametrize("family", KINDS)
def test_nll_is_the_mean_over_all_tokens_whatever_the_batch_size(models, data, family, batch_size):
    split = data[family].split("dev")
    rows = token_losses(models[family], data[family], split)
    expected = torch.cat(rows).mean().item()
    got = evaluator(data[family], batch_size=batch_size).mean_nll(models[family], split)
    assert got == pytest.approx(expected, rel=1e-5)
    mean_of_means = torch.stack([row.mean() for row in rows]).mean().item()
    assert abs(mean_of_means - expected) > 1e-3 * expected, "rows must differ, or the test sees no difference"


@pytest.mark.parametrize("family", KINDS)
def test_nll_of_a_uniform_model_is_the_logarithm_of_its_vocabulary(tiny_models, data, family):
    model = load_model(tiny_models[family]["teacher"])
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    got = evaluator(data[family]).evaluate(model, data[family].split("dev"), DEV["target"]).scores
    assert got["nll"] == pytest.approx(math.log(model.config.vocab_size), rel=1e-6)
    assert got["ppl"] == pytest.approx(model.config.vocab_size, rel=1e-5)


@pytest.mark.parametrize("family", KINDS)
def test_the_likelihood_may_be_that_of_other_rows(models, data, family):
    """dev_ppl: predictions and their scores stay dev's."""
    scorer, dev = evaluator(data[family]), data[family].split("dev")
    ppl_split = data[family].split("dev_ppl")
    plain = scorer.evaluate(models[family], dev, DEV["target"])
    other = scorer.evaluate(models[family], dev, DEV["target"], likelihood_split=ppl_split)
    assert other.predictions == plain.predictions
    assert other.scores["rouge1_f"] == plain.scores["rouge1_f"]
    assert other.scores["nll"] == scorer.mean_nll(models[family], ppl_split)
    assert abs(other.scores["nll"] - plain.scores["nll"]) > 1e-3
    assert other.scores["ppl"] == pytest.approx(math.exp(other.scores["nll"]))


@pytest.mark.parametrize(("nll", "ppl"), [(0.0, 1.0), (1e6, math.inf), (math.inf, math.inf), (math.nan, math.nan)])
def test_a_perplexity_beyond_numbers_is_infinite_and_of_nothing_is_nan(models, data, monkeypatch, nll, ppl):
    monkeypatch.setattr(Evaluator, "mean_nll", lambda *_: nll)
    scores = evaluator(data["t5"]).evaluate(models["t5"], data["t5"].split("dev"), DEV["target"]).scores
    assert scores["ppl"] == pytest.approx(ppl, nan_ok=True)


# ---------------------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("family", KINDS)
def test_predictions_stand_in_the_order_of_the_rows(models, data, family, batch_size):
    """Batches are sorted by length; each prediction is what its row gives alone."""
    split = data[family].split("dev")
    scorer = evaluator(data[family], batch_size=batch_size)
    expected = []
    for row in range(len(split)):
        batch = collate(data[family].preprocessor, split, [row])
        rows = write_tokens(models[family], batch, scorer.decoding)
        expected += to_texts(data[family].preprocessor.tokenizer, rows)
    assert len(set(expected)) > 3, "rows must lead to different predictions"
    assert scorer.predict(models[family], split) == expected
    assert scorer.evaluate(models[family], split, DEV["target"]).predictions == expected


@pytest.mark.parametrize("family", KINDS)
def test_rows_with_equal_text_each_get_a_prediction(models, tiny_tokenizers, family):
    preprocessor = Preprocessor(tiny_tokenizers[family], family == "t5", 64, 32)
    twice = {"text": ["a cat", "a dog", "a cat"], "target": ["x", "y", "z"]}
    both = TokenizedDatasets({"dev": twice}, preprocessor)
    first, second, third = evaluator(both).predict(models[family], both.split("dev"))
    assert first == third
    assert first != second


@pytest.mark.parametrize("family", KINDS)
def test_empty_predictions_are_scored(models, data, family):
    """A model that ends at once: a row each, and zero for each."""
    model = copy.deepcopy(models[family])
    eos = model.generation_config.eos_token_id
    head = model.get_output_embeddings()
    model.lm_head = torch.nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.lm_head.bias.zero_()[eos] = 50.0
    scorer = evaluator(data[family], metrics=("rouge", "sacrebleu", "chrf"))
    result = scorer.evaluate(model, data[family].split("dev"), ["a dog"] * len(DEV["text"]))
    assert result.predictions == [""] * len(DEV["text"])
    texts = {name: score for name, score in result.scores.items() if name not in ("nll", "ppl")}
    assert len(texts) > 9
    assert set(texts.values()) == {0.0}


def test_scores_are_those_of_the_columns(models, data):
    scorer = evaluator(data["t5"])
    scores = scorer.evaluate(models["t5"], data["t5"].split("dev"), DEV["target"]).scores
    assert tuple(scores) == scorer.columns
    assert tuple(scores)[-2:] == ("nll", "ppl")


def test_references_are_taken_as_given(models, data):
    """Not from the truncated labels: a prediction that equals its reference scores 100."""
    scorer, split = evaluator(data["t5"]), data["t5"].split("dev_ppl")
    predictions = scorer.predict(models["t5"], split)
    assert all(predictions)
    assert scorer.evaluate(models["t5"], split, predictions).scores["chrf"] == pytest.approx(100.0)
    with pytest.raises(ValueError, match="3 predictions, but 2 references"):
        scorer.evaluate(models["t5"], split, predictions[:2])


# --------------------------------------------------------------------------------------------------------- what is left


def with_dropout(model):
    model = copy.deepcopy(model)
    changed = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in changed:
        module.p = 0.5
    assert changed
    return model


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("family", KINDS)
def test_dropout_is_off_and_the_mode_comes_back(models, data, family, training):
    model = with_dropout(models[family]).train(training)
    scorer, split = evaluator(data[family]), data[family].split("dev")
    result = scorer.evaluate(model, split, DEV["target"])
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert result == scorer.evaluate(models[family], split, DEV["target"])


def test_evaluation_makes_no_gradient_and_draws_no_random_number(models, data):
    model = with_dropout(models["gpt2"]).train()
    before = torch.get_rng_state()
    evaluator(data["gpt2"]).evaluate(model, data["gpt2"].split("dev"), DEV["target"])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_evaluation_can_be_stopped_between_batches_and_restores_the_mode(models, data):
    class Stop(StopRequests):
        """Counts looks; a signal comes before the look of the given number."""

        def __init__(self, at=None):
            super().__init__()
            self.n_looks, self.at = 0, at

        def leaves(self):
            self.n_looks += 1
            self.received = signal.SIGINT if self.n_looks == self.at else None
            return super().leaves()

    model = copy.deepcopy(models["t5"]).train()
    scorer = evaluator(data["t5"], batch_size=2, stop=Stop(at=3))
    with pytest.raises(Interrupted):
        scorer.evaluate(model, data["t5"].split("dev"), DEV["target"])
    assert model.training
    counting = evaluator(data["t5"], batch_size=2, stop=Stop())
    counting.evaluate(model, data["t5"].split("dev"), DEV["target"])
    assert counting.stop.n_looks == 3 + 3  # batches of predictions, and of the likelihood
