"""Teacher forcing: the logits of valid target positions equal those of a plain forward pass."""

import pytest
import torch
from conftest import DECODER_ONLY_NAMES, ENCODER_DECODER_NAMES, FAMILY_NAMES
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from src.config.constants import IGNORE_INDEX
from src.distillation.token_losses import token_nll
from src.distillation.vocabulary_loss import TokenLoss, weighted_sum
from src.models import forward, lazy_logits
from src.models.forward import lazy_target_logits, target_labels, target_logits, teacher_forced
from src.models.loading import load_model
from src.models.new_models import ModelSizes, build_from_scratch
from src.tokens.batch import Batch, pad_sequences
from src.tokens.ragged import Ragged
from tests.models.test_students import MODEL_TYPES, tiny_random

EOS = 1
CONTEXTS = ([5, 6, 7, 8, 9], [10, 11], [12])
TARGETS = ([20, 21, EOS], [22, 23, 24, 25, EOS], [EOS])
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def batch_of(contexts, targets, *, on_the_left: bool, pad: int = 0) -> Batch:
    inputs, mask = pad_sequences([Ragged.of([ids])[0] for ids in contexts], pad, on_the_left=on_the_left)
    labels, _ = pad_sequences([Ragged.of([ids])[0] for ids in targets], IGNORE_INDEX, on_the_left=False)
    return Batch(inputs, mask, labels, tuple(range(len(contexts))))


def batch_for(model, contexts=CONTEXTS, targets=TARGETS) -> Batch:
    return batch_of(contexts, targets, on_the_left=not model.config.is_encoder_decoder)


def row_by_row(model, contexts=CONTEXTS, targets=TARGETS) -> torch.Tensor:
    """(N, V) from a decoder-only model reading one unpadded sequence at a time, without masks and position ids."""
    logits = []
    for context, target in zip(contexts, targets, strict=True):
        whole = model(input_ids=torch.tensor([[*context, *target]])).logits[0]
        logits.append(whole[len(context) - 1 : len(context) + len(target) - 1])
    return torch.cat(logits)


def dense(model, batch: Batch) -> torch.Tensor:
    """(N, V) from the model's own forward, which computes every position."""
    if not model.config.is_encoder_decoder:
        return row_by_row(model)
    start = torch.full((len(batch.rows), 1), model.config.decoder_start_token_id)
    read = torch.cat([start, batch.labels[:, :-1].masked_fill(batch.labels[:, :-1] == IGNORE_INDEX, 0)], dim=1)
    logits = model(batch.input_ids, attention_mask=batch.attention_mask, decoder_input_ids=read).logits
    return logits[batch.labels != IGNORE_INDEX]


def hooks_of(model) -> int:
    return len(model.get_output_embeddings()._forward_pre_hooks)


@pytest.fixture(scope="module")
def tiny(tiny_models):
    """{family: the tiny teacher}; its gradients are cleared by whoever makes some."""
    return {family: load_model(folders["teacher"]) for family, folders in tiny_models.items()}


# --------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_logits_are_those_of_a_dense_forward(tiny, family):
    """Decoder-only: of every row alone. So left padding, masks and position ids are right (GPT-2 counts positions)."""
    model = tiny[family]
    batch = batch_for(model)
    with torch.no_grad():
        got, expected = target_logits(model, batch), dense(model, batch)
    assert got.shape == (9, model.config.vocab_size)
    torch.testing.assert_close(got, expected, **CLOSE)
    assert expected.std() > 0.01, "models that say nothing would all agree"


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_known_model_type_agrees_with_its_dense_forward(model_type):
    """Among them M2M-100, which does not offer to shift the labels, and mBART, which would shift them otherwise."""
    model = tiny_random(model_type)
    batch = batch_for(model)
    with torch.no_grad():
        torch.testing.assert_close(target_logits(model, batch), dense(model, batch), **CLOSE)


@pytest.mark.parametrize(
    ("model_type", "sizes"),
    [
        ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
        ("mpt", {"d_model": 16, "n_layers": 2, "n_heads": 2}),
    ],
)
def test_a_decoder_that_takes_no_position_ids_agrees_as_well(model_type, sizes):
    tokens = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": EOS}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **tokens, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        torch.testing.assert_close(target_logits(model, batch_for(model)), row_by_row(model), **CLOSE)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_padding_changes_nothing(tiny, family):
    """Whatever stands in padded places of the input, and however wide the batch is."""
    model = tiny[family]
    batch = batch_for(model)
    other = batch.input_ids.masked_fill(batch.attention_mask == 0, 13)
    wider = F.pad(batch.labels, (0, 3), value=IGNORE_INDEX)
    longer = ([*range(5, 17)], *CONTEXTS)
    with torch.no_grad():
        expected = target_logits(model, batch)
        for labels in (batch.labels, wider):
            got = target_logits(model, Batch(other, batch.attention_mask, labels, batch.rows))
            torch.testing.assert_close(got, expected, **CLOSE)
        beside = target_logits(model, batch_for(model, longer, (TARGETS[0], *TARGETS)))
    torch.testing.assert_close(beside[len(TARGETS[0]) :], expected, **CLOSE)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_labels_of_eos_alone_and_rows_of_padding_alone(tiny, family):
    model = tiny[family]
    expected = target_logits(model, batch_for(model, CONTEXTS[:1], ([EOS],)))
    assert expected.shape == (1, model.config.vocab_size)
    batch = batch_for(model, CONTEXTS[:2], ([EOS], [IGNORE_INDEX]))
    torch.testing.assert_close(target_logits(model, batch), expected, **CLOSE)
    nothing = batch_for(model, CONTEXTS[:2], ([IGNORE_INDEX], [IGNORE_INDEX]))
    assert target_logits(model, nothing).shape == (0, model.config.vocab_size)
    target_logits(model, nothing).sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    model.zero_grad()


def test_labels_come_in_the_order_of_their_logits():
    batch = batch_of(CONTEXTS, TARGETS, on_the_left=False)
    assert target_labels(batch).tolist() == [token for target in TARGETS for token in target]


def test_pad_may_be_eos(tiny):
    """The decoder of an encoder-decoder model, and a context's mask, follow labels and masks, not token ids."""
    for family in ("t5", "gpt2"):
        model = tiny[family]
        contexts = ([5, 6, EOS], [7])
        left = not model.config.is_encoder_decoder
        with torch.no_grad():
            plain = target_logits(model, batch_of(contexts, TARGETS[:2], on_the_left=left))
            same = target_logits(model, batch_of(contexts, TARGETS[:2], on_the_left=left, pad=EOS))
        torch.testing.assert_close(same, plain, **CLOSE)


# ------------------------------------------------------------------------------------------------------------ gradients


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    made = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return made


@pytest.mark.parametrize("family", ENCODER_DECODER_NAMES)
def test_gradients_are_those_of_the_models_own_loss(tiny, family):
    model = tiny[family]
    batch = batch_for(model)
    own = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
    ours = F.cross_entropy(target_logits(model, batch), target_labels(batch))
    torch.testing.assert_close(ours, own, **CLOSE)
    torch.testing.assert_close(gradients(model, ours), gradients(model, own), **CLOSE)


@pytest.mark.parametrize("family", DECODER_ONLY_NAMES)
def test_gradients_are_those_of_single_unpadded_rows(tiny, family):
    model = tiny[family]
    labels = target_labels(batch_for(model))
    ours = gradients(model, F.cross_entropy(target_logits(model, batch_for(model)), labels))
    alone = gradients(model, F.cross_entropy(row_by_row(model), labels))
    assert ours.keys() == alone.keys()
    torch.testing.assert_close(ours, alone, **CLOSE)
    assert any(gradient.any() for gradient in ours.values())


# ----------------------------------------------------------------------------------------- what the projection receives


class LargestOfVocabulary(TorchDispatchMode):
    """Notes the most rows of any tensor with `vocabulary` columns that an operation makes."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.shape[-1] == self.vocabulary:
                self.rows = max(self.rows, tensor.numel() // self.vocabulary)
        return made


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_nothing_of_all_positions_times_vocabulary_is_made(family, monkeypatch):
    """Neither forward nor backward: 49 of 4 × 40 target positions are valid, and 10 of them are computed at once."""
    monkeypatch.setattr(lazy_logits, "CPU_CHUNK", 10 * 101)
    monkeypatch.setattr(lazy_logits, "LEAST_ROWS", 1)
    sizes = ModelSizes(vocab_size=101, pad_token_id=0, eos_token_id=EOS, d_model=8, d_ff=16, dropout=0.0)
    model = build_from_scratch(family, sizes, seed=0)
    batch = batch_for(model, (CONTEXTS[0], *CONTEXTS), ([*range(20, 59), EOS], *TARGETS))
    target_logits(model, batch)  # the first time a few rows are compared
    received = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: received.append(output.shape))
    nll = TokenLoss(lambda student, _, labels: token_nll(student, labels), torch.ones(49), fused="nll")
    with LargestOfVocabulary(101) as made:
        weighted_sum(teacher_forced(model, batch).logits, None, target_labels(batch), [nll])[0].backward()
    assert received == [(0, 101)]
    assert made.rows == 10


# ---------------------------------------------------------------------------------------------------- passes by length


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_passes_by_length_change_nothing(family, monkeypatch):
    """Logits in the batch's order, and gradients of all weights, whatever rows share a pass; a label that is not known
    stands in the middle of a target."""
    model = build_from_scratch(
        family, ModelSizes(vocab_size=50, pad_token_id=0, eos_token_id=EOS, d_model=16, d_ff=32, dropout=0.0), seed=0
    )
    contexts = ([5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [5], [6, 7, 8, 9, 10, 11, 12])
    batch = batch_for(model, contexts, ([20, 21, 22, 23, EOS], [EOS], [24, 25, EOS], [26, EOS], [27, 28, 29, EOS]))
    batch.labels[4, 1] = IGNORE_INDEX
    weight = torch.randn(14, 50, generator=torch.Generator().manual_seed(0))

    def gradients(of):
        model.zero_grad()
        logits = of(model, batch).logits
        (logits * weight).sum().backward()
        return logits.detach(), {name: each.grad.clone() for name, each in model.named_parameters()}

    expected, whole = gradients(lambda *given: teacher_forced(*given).logits)
    n_passes = []
    monkeypatch.setattr(forward, "teacher_forced", lambda *given: n_passes.append(1) or teacher_forced(*given))
    for cost, n in ((10**6, 1), (6, 2), (0, 3)):
        monkeypatch.setattr(forward, "_cost_of_pass", lambda *_, on_cpu, cost=cost: cost)
        n_passes.clear()
        logits, cut = gradients(lazy_target_logits)
        assert len(n_passes) >= n
        torch.testing.assert_close(logits, expected, **CLOSE)
        for name, gradient in cut.items():
            torch.testing.assert_close(gradient, whole[name], **CLOSE, msg=name)
    assert not model.get_input_embeddings()._forward_hooks


class TableGradients(TorchDispatchMode):
    """Counts the gradients of a table of `size` embeddings that are made."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.embedding_dense_backward.default and args[2] == self.size:
            self.n += 1
        return func(*args, **(kwargs or {}))


def test_passes_share_one_gradient_of_the_embeddings(monkeypatch):
    """That of a lookup is as large as the table: encoder and decoder have one each, whatever the number of passes."""
    sizes = ModelSizes(vocab_size=997, pad_token_id=0, eos_token_id=EOS, d_model=8, d_ff=16, dropout=0.0)
    model = build_from_scratch("t5", sizes, seed=0)
    batch, counts = batch_for(model), []
    for cost in (10**6, 0):
        monkeypatch.setattr(forward, "_cost_of_pass", lambda *_, on_cpu, cost=cost: cost)
        with TableGradients(997) as made:
            lazy_target_logits(model, batch).rows.sum().backward()
        counts.append(made.n)
    assert counts == [2, 2]


# ----------------------------------------------------------------------------------------------------------- projection


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_projection_is_understood(family):
    sizes = ModelSizes(vocab_size=101, pad_token_id=0, eos_token_id=EOS, d_model=32, d_ff=64, dropout=0.1)
    model = build_from_scratch(family, sizes, seed=0)
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    batch = batch_for(model)
    torch.manual_seed(3)
    first = target_logits(model.train(), batch)
    torch.manual_seed(3)
    assert torch.equal(target_logits(model, batch), first), "looking into a model draws no random numbers"
    assert teacher_forced(model, batch).logits.projection is not None
    torch.testing.assert_close(target_logits(model.eval(), batch), dense(model, batch), **CLOSE)


def test_a_model_that_does_more_gives_its_own_logits(monkeypatch):
    """A factor on the logits that is not known here: the model's own logits are taken, at every call."""
    sizes = ModelSizes(vocab_size=101, pad_token_id=0, eos_token_id=EOS, d_model=32, d_ff=64, dropout=0.0)
    model = build_from_scratch("gpt2", sizes, seed=0)
    plain = model.forward

    def sharpened(**inputs):
        output = plain(**inputs)
        output.logits = output.logits * 3
        return output

    monkeypatch.setattr(model, "forward", sharpened)
    batch = batch_for(model)
    for _ in range(2):
        output = teacher_forced(model, batch)
        assert output.logits.projection is None
        torch.testing.assert_close(output.logits.logits, dense(model, batch), **CLOSE)


# ---------------------------------------------------------------------------------------------------------------- hooks


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_hook_is_gone_afterwards_also_after_an_error(tiny, family):
    model = tiny[family]
    batch = batch_for(model)
    expected = target_logits(model, batch)
    assert hooks_of(model) == 0
    broken = Batch(batch.input_ids + 10_000, batch.attention_mask, batch.labels, batch.rows)
    with pytest.raises(IndexError):
        target_logits(model, broken)
    assert hooks_of(model) == 0
    torch.testing.assert_close(target_logits(model, batch), expected, **CLOSE)


def test_a_model_that_names_no_projection_is_selected_afterwards(tiny, monkeypatch):
    model = tiny["gpt2"]
    batch = batch_for(model)
    expected = target_logits(model, batch)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    torch.testing.assert_close(target_logits(model, batch), expected, **CLOSE)
