"""The decoding loop equals `generate` and teacher forcing; the nucleus equals its definition; the fallbacks."""

import logging
from itertools import product

import pytest
import torch
from conftest import ENCODER_DECODER_NAMES, FAMILY_NAMES, slow
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from transformers.generation import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from src.decoding import nucleus as nucleus_module
from src.decoding import sampling, sampling_support
from src.decoding.generate import write_tokens
from src.decoding.grouped_attention import AttentionByInput, attend
from src.decoding.kv_cache import growing_cache
from src.decoding.nucleus import BLOCK_SIZE, Nucleus, draw
from src.decoding.sampling import sample
from src.decoding.sampling_support import warn_of_generate, why_unsupported
from src.decoding.settings import Decoding, decoding_of
from src.models import lazy_logits
from src.models.generation_config import NEUTRAL, safe_generation_config
from src.models.new_models import ModelSizes, build_from_scratch
from tests.decoding.test_generate import EOS, INPUTS, PAD, babbler, batch_of, cut

ALWAYS, NEVER = 1e-6, 2.0  # values of COMPACTION_THRESHOLD
families = pytest.mark.parametrize("family", FAMILY_NAMES)
few_families = pytest.mark.parametrize("family", ["t5", "gpt2", *slow("bart", "opt", "llama")])
with_cross_attention = pytest.mark.parametrize("family", ENCODER_DECODER_NAMES)


@pytest.fixture(autouse=True)
def warnings_anew():
    warn_of_generate.cache_clear()


def by_generate(model, inputs, **arguments) -> list[list[int]]:
    """What `generate` writes, each row up to EOS."""
    batch = batch_of(model, inputs)
    rows = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **arguments)
    return [cut(row) for row in rows[:, 1 if model.config.is_encoder_decoder else batch.input_ids.shape[1] :]]


def greedy(model, inputs, length: int = 10, k: int = 1) -> list[list[int]]:
    return [
        cut(row) for row in sample(model, batch_of(model, inputs), None, max_new_tokens=length, targets_per_input=k)
    ]


def teacher_forced_logits(model, ids: list[int], target: list[int]) -> Tensor:
    """(tokens, V) before each token of the target, from one pass over one unpadded sequence without a cache."""
    if model.config.is_encoder_decoder:
        read = torch.tensor([[model.config.decoder_start_token_id, *target[:-1]]])
        return model(input_ids=torch.tensor([ids]), decoder_input_ids=read, use_cache=False).logits[0]
    return model(input_ids=torch.tensor([[*ids, *target[:-1]]]), use_cache=False).logits[0, len(ids) - 1 :]


# ------------------------------------------------------------------------------------------------------------- the loop


@families
@pytest.mark.parametrize("threshold", [ALWAYS, NEVER])
def test_greedy_is_that_of_generate(monkeypatch, family, threshold):
    """Whether rows that have ended leave at once or stay; inputs of different lengths."""
    monkeypatch.setattr(sampling, "COMPACTION_THRESHOLD", threshold)
    lengths = set()
    for seed in range(4):
        model = babbler(family, seed=seed)
        got = greedy(model, INPUTS)
        assert got == by_generate(model, INPUTS, max_new_tokens=10, do_sample=False)
        lengths |= {len(target) for target in got}
    assert len(lengths) > 2, "rows must end at different steps, or the test sees little"


@families
@pytest.mark.parametrize("threshold", [ALWAYS, 1 / 8, NEVER])
@torch.no_grad()
def test_each_step_draws_from_the_models_distribution(monkeypatch, family, threshold):
    """The logits that a row draws from are those of its own input and its own tokens, whoever has left before."""
    monkeypatch.setattr(sampling, "COMPACTION_THRESHOLD", threshold)
    model, steps, k = babbler(family, seed=0, peak=0.4), [], 6

    def spy(logits: Tensor, nucleus: Nucleus) -> Tensor:
        steps.append(logits.log_softmax(-1))
        return draw(logits, nucleus)

    monkeypatch.setattr(sampling, "draw", spy)
    torch.manual_seed(0)
    rows = sample(model, batch_of(model, INPUTS), Nucleus(0.95), max_new_tokens=9, targets_per_input=k)
    targets = [cut(row) for row in rows]
    expected = [teacher_forced_logits(model, INPUTS[i // k], target) for i, target in enumerate(targets)]
    for step, logits in enumerate(steps):
        forced = [logits[step] for logits, target in zip(expected, targets, strict=True) if len(target) > step]
        torch.testing.assert_close(logits, torch.stack(forced).log_softmax(-1), atol=1e-5, rtol=1e-5)
    assert [len(logits) for logits in steps][0] == len(targets) > len(steps[-1]), "some must have ended"


@with_cross_attention
def test_models_that_do_not_attend_by_sdpa_are_sampled_too(family):
    """Cross-attention's keys and values are then repeated, and no input's are mixed up with another's."""
    for seed in range(2):
        model = babbler(family, seed=seed)
        model.set_attn_implementation("eager")
        once = by_generate(model, INPUTS, max_new_tokens=10, do_sample=False)
        assert greedy(model, INPUTS, k=3) == [target for target in once for _ in range(3)]


@few_families
@pytest.mark.parametrize(("inputs_that_fit", "calls"), [(0, 4), (1, 4), (3, 2), (4, 1), (1000, 1)])
def test_as_many_inputs_at_once_as_fit(monkeypatch, family, inputs_that_fit, calls):
    """At least one; what is written does not depend on it."""
    model, k = babbler(family, seed=1), 3
    expected = greedy(model, INPUTS[:4], k=k)
    batch = batch_of(model, INPUTS[:4])
    states = sum(each.numel() for layer in cached(model, batch, 10) for each in layer) // len(INPUTS[:4])
    row = 4 * (states + sampling.COPIES_OF_LOGITS * model.config.vocab_size)
    monkeypatch.setattr(sampling, "MEMORY", inputs_that_fit * k * row + row - 1)
    seen = []
    write = sampling._sample
    monkeypatch.setattr(sampling, "_sample", lambda *args: seen.append(len(args[1].input_ids)) or write(*args))
    assert greedy(model, INPUTS[:4], k=k) == expected
    assert len(seen) == calls


def cached(model, batch, length: int) -> list[tuple[Tensor, Tensor]]:
    """Self-attention's keys and values when every row has written `length` tokens, by layer."""
    with torch.no_grad():
        model.generation_config.eos_token_id, eos = None, model.generation_config.eos_token_id
        output = model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=length + 1,
            do_sample=False, return_dict_in_generate=True, use_cache=True,
        )  # fmt: skip
        model.generation_config.eos_token_id = eos
    cache = output.past_key_values
    layers = (cache.self_attention_cache if model.config.is_encoder_decoder else cache).layers
    return [(layer.keys, layer.values) for layer in layers]


@families
def test_the_targets_of_an_input_are_adjacent(family):
    """With a nucleus of one token, so that they are known."""
    model = babbler(family, seed=3)
    once = greedy(model, INPUTS)
    assert len({tuple(target) for target in once}) > 1
    rows = write_tokens(model, batch_of(model, INPUTS), Decoding(10, targets_per_input=3, nucleus=Nucleus(0.0)))
    assert [cut(row) for row in rows] == [target for target in once for _ in range(3)]


@families
def test_equal_seeds_give_equal_targets(family):
    model, batch = babbler(family, seed=0, peak=0.3), batch_of(babbler(family, seed=0), INPUTS)

    def sampled(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return sample(model, batch, Nucleus(0.95), max_new_tokens=8, targets_per_input=4)

    assert torch.equal(sampled(0), sampled(0))
    assert not torch.equal(sampled(0), sampled(1))


@with_cross_attention
def test_sources_are_projected_once_per_input(family):
    """The encoder, and cross-attention's keys and values: B rows, not B · K."""
    model = babbler(family, seed=0, peak=0.3)
    names = ("EncDecAttention.k", "EncDecAttention.v", "encoder_attn.k_proj", "encoder_attn.v_proj")
    modules = [module for name, module in model.named_modules() if name.endswith(names)]
    assert len(modules) == 4  # of two layers
    seen = []
    for module in modules:
        module.register_forward_hook(lambda _, args, output: seen.append(len(output)))
    model.get_encoder().register_forward_hook(lambda _, args, output: seen.append(len(output[0])))
    sample(model, batch_of(model, INPUTS), Nucleus(0.95), max_new_tokens=6, targets_per_input=5)
    assert seen == [len(INPUTS)] * 5


@families
def test_only_rows_that_go_on_reach_the_vocabulary(family, monkeypatch):
    """By the model's own projection at the first step, where it is looked at; then it gets none."""
    model, by_model, rows = babbler(family, seed=0), [], []
    model.lm_head.register_forward_hook(lambda _, args, output: by_model.append(output.shape[:2]))
    stock = sampling._next_tokens
    monkeypatch.setattr(
        sampling, "_next_tokens", lambda lazy_logits, *rest: rows.append(len(lazy_logits)) or stock(lazy_logits, *rest)
    )
    targets = greedy(model, INPUTS, k=2)
    lengths = [len(target) for target in targets]
    live = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
    assert rows == [2 * len(INPUTS), *live]
    assert by_model == [(len(INPUTS), 1), *[(0, 1)] * len(live)]


@pytest.mark.parametrize("chunk", ["PACKED_CHUNK", "CPU_CHUNK"])
@families
def test_a_few_rows_of_the_vocabulary_at_once(family, chunk, monkeypatch):
    """As many as there is memory for: the same tokens, greedy; as likely ones, drawn."""
    model = babbler(family, seed=0)
    expected = greedy(model, INPUTS, k=2)
    vocabulary, sizes, stock = model.config.vocab_size, [], sampling.draw
    if chunk == "CPU_CHUNK":
        monkeypatch.setattr(lazy_logits, "packed", lambda weight: None)
    monkeypatch.setattr(lazy_logits, chunk, 3 * vocabulary)
    monkeypatch.setattr(lazy_logits, "LEAST_ROWS", 1)
    assert greedy(model, INPUTS, k=2) == expected
    monkeypatch.setattr(sampling, "draw", lambda logits, nucleus: sizes.append(len(logits)) or stock(logits, nucleus))
    sample(model, batch_of(model, INPUTS), Nucleus(0.95), max_new_tokens=3, targets_per_input=5)
    assert max(sizes) == 3


@families
def test_a_projection_that_is_not_all_stays_the_models_own(family, monkeypatch):
    """Something is done to the logits behind it."""
    model = babbler(family, seed=0)
    model.register_forward_hook(_ban_token_7)
    assert greedy(model, INPUTS, k=2) == [
        row for row in by_generate(model, INPUTS, max_new_tokens=10, do_sample=False) for _ in range(2)
    ]


def _ban_token_7(_module, _args, output):
    output.logits[..., 7] = -50.0
    return output


@families
def test_everything_is_as_it_was_after_an_error(monkeypatch, family):
    model, stock = babbler(family, seed=0), ALL_ATTENTION_FUNCTIONS["sdpa"]
    before = greedy(model, INPUTS)

    def fail(*_) -> Tensor:
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not stock
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling, "draw", fail)
    with pytest.raises(KeyboardInterrupt):
        sample(model, batch_of(model, INPUTS), Nucleus(0.95), max_new_tokens=3)
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is stock
    assert not model.lm_head._forward_pre_hooks
    assert greedy(model, INPUTS) == before == by_generate(model, INPUTS, max_new_tokens=10, do_sample=False)


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2"])
def test_dropout_acts_in_training_mode_alone(family):
    sizes = ModelSizes(
        vocab_size=12, pad_token_id=PAD, eos_token_id=EOS, n_encoder_layers=1, n_decoder_layers=1, d_model=16,
        d_ff=32, n_heads=2, dropout=0.5, max_position_embeddings=64,
    )  # fmt: skip
    model = build_from_scratch(family, sizes, seed=0)
    model.generation_config = safe_generation_config(model.config)
    batch = batch_of(model, INPUTS[:1])
    assert len(sample(model.eval(), batch, None, max_new_tokens=6, targets_per_input=8).unique(dim=0)) == 1
    assert len(sample(model.train(), batch, None, max_new_tokens=6, targets_per_input=8).unique(dim=0)) > 1
    assert model.training


@families
def test_bfloat16_by_autocast(family):
    model = babbler(family, seed=1, peak=100.0)
    with torch.autocast("cpu", torch.bfloat16):
        expected = by_generate(model, INPUTS, max_new_tokens=8, do_sample=False)
        for nucleus in (None, Nucleus(0.95)):
            rows = sample(model, batch_of(model, INPUTS), nucleus, max_new_tokens=8, targets_per_input=2)
            assert [cut(row) for row in rows] == [target for target in expected for _ in range(2)]


def test_growing_layers_hold_what_dynamic_ones_do():
    generator = torch.Generator().manual_seed(0)
    growing, dynamic, n_rows = growing_cache(), DynamicCache(), 5
    for step in range(60):
        length = 7 if step == 0 else 1
        keys, values = torch.randn(2, n_rows, 2, length, 3, generator=generator)
        for layer in range(2):
            pairs = zip(growing.update(keys, values, layer), dynamic.update(keys, values, layer), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
        assert growing.get_seq_length() == dynamic.get_seq_length() == 7 + step
        if step in (0, 3, 30):
            rows = torch.arange(n_rows).repeat_interleave(3) if step == 0 else torch.arange(0, n_rows, 2)
            growing.reorder_cache(rows)
            dynamic.reorder_cache(rows)
            n_rows = len(rows)


@pytest.mark.parametrize("n_queries", [1, 5])
@pytest.mark.parametrize("scale", [None, 1.0, 0.3])
@pytest.mark.parametrize("mask", [None, "seen", "summand"])
@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_by_products_is_that_of_the_kernel(n_queries, scale, mask, with_bias):
    torch.manual_seed(0)
    query, key, value = torch.randn(4, 3, n_queries, 8), torch.randn(4, 3, 7, 8), torch.randn(4, 3, 7, 8)
    seen = torch.rand(4, 1, 1, 7) < 0.6
    seen[..., 0] = True
    summand, bias = torch.zeros(4, 1, 1, 7).masked_fill(~seen, -torch.inf), torch.randn(1, 3, 1, 7)
    given = {None: None, "seen": seen, "summand": summand}[mask]
    whole = (summand if mask else 0) + (bias if with_bias else torch.zeros(1, 1, 1, 7))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=whole, scale=scale)
    made = attend(query, key, value, given, scale, bias if with_bias else None)
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("uses_attend", "changed"),
    [
        (True, {}),
        (False, {"dropout": 0.1}),
        (False, {"softcap": 30.0}),
        (False, {"queries": 2}),
        (False, {"groups": 1}),
        (False, {"dtype": torch.bfloat16}),
    ],
)
def test_attend_takes_one_query_per_row_in_float32(uses_attend, changed):
    """A query for each head, no dropout, nothing that `attend` does not know."""
    asked = []

    def stock(_, query, *args, **kwargs):
        asked.append(kwargs)
        return query.transpose(1, 2), None

    sizes = {"queries": 1, "groups": 4, "dtype": torch.float32, **changed}
    given = {name: value for name, value in changed.items() if name in ("dropout", "softcap")}
    query = torch.randn(3, 4, sizes["queries"], 8, dtype=sizes["dtype"])
    key, value = torch.randn(2, 3, sizes["groups"], 5, 8, dtype=sizes["dtype"])
    made, _ = AttentionByInput(stock)(nn.Identity(), query, key, value, None, scaling=0.5, **given)
    assert made.shape == (3, sizes["queries"], 4, 8)
    if uses_attend:
        expected = F.scaled_dot_product_attention(query, key, value, scale=0.5).transpose(1, 2)
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    assert len(asked) == (not uses_attend)
    assert all(kwargs["scaling"] == 0.5 for kwargs in asked)


# ----------------------------------------------------------------------------------------------------- the distribution


def sequence_probabilities(
    model, ids: list[int], *, top_p: float, temperature: float, top_k: int = 0
) -> dict[tuple[int, ...], float]:
    """Of every target of at most two tokens, by the sorting top-k and top-p of `generate` on teacher-forced logits."""
    warper = LogitsProcessorList([*([TopKLogitsWarper(top_k)] if top_k else []), TopPLogitsWarper(top_p)])

    def next_tokens(target: list[int]) -> Tensor:
        logits = teacher_forced_logits(model, ids, [*target, PAD])[-1:]
        return warper(None, logits.double() / temperature).softmax(-1)[0]

    first = next_tokens([])
    probabilities = {(EOS,): float(first[EOS])}
    for one in (token for token in range(len(first)) if token != EOS and first[token] > 0):
        second = next_tokens([one])
        probabilities |= {(one, two): float(first[one] * second[two]) for two in range(len(second)) if second[two] > 0}
    return probabilities


def surprise(drawn: list[list[int]], expected: dict[tuple[int, ...], float]) -> float:
    """Chi-square in standard deviations above its mean; infinite for a target that cannot be."""
    counts = dict.fromkeys(expected, 0)
    for target in drawn:
        if tuple(target) not in counts:
            return float("inf")
        counts[tuple(target)] += 1
    likely = [key for key, p in expected.items() if p * len(drawn) >= 5]  # where the approximation holds
    n = len(drawn)
    chi_square = sum((counts[key] - n * expected[key]) ** 2 / (n * expected[key]) for key in likely)
    degrees = len(likely) - 1
    return (chi_square - degrees) / (2 * degrees) ** 0.5


SETTINGS = [(family, 0.95, 1.0) for family in FAMILY_NAMES] + [("t5", 0.6, 1.5), ("gpt2", 0.6, 1.5)]


@pytest.mark.parametrize(("family", "top_p", "temperature"), SETTINGS)
@torch.no_grad()
def test_targets_have_the_distribution_of_generate(family, top_p, temperature):
    """6,000 targets of two inputs; with the nucleus 0.05 smaller or larger, or another temperature, it is seen."""
    model, inputs, k = babbler(family, seed=0, peak=0.4), INPUTS[:2], 3000

    def drawn(nucleus: Nucleus) -> list[list[int]]:
        torch.manual_seed(0)
        rows = sample(model, batch_of(model, inputs), nucleus, max_new_tokens=2, targets_per_input=k)
        return [cut(row) for row in rows]

    def worst(targets: list[list[int]]) -> float:
        return max(surprise(targets[k * i : k * (i + 1)], expected[i]) for i in range(2))

    expected = [sequence_probabilities(model, ids, top_p=top_p, temperature=temperature) for ids in inputs]
    assert worst(drawn(Nucleus(top_p, temperature))) < 6
    for mutant in (
        Nucleus(top_p - 0.05, temperature),
        Nucleus(top_p + 0.05, temperature),
        Nucleus(top_p, 0.7 * temperature),
    ):
        assert worst(drawn(mutant)) > 6
    if (family, top_p) in (("t5", 0.95), ("gpt2", 0.6)):
        torch.manual_seed(0)
        arguments = {"do_sample": True, "top_p": top_p, "top_k": 0, "temperature": temperature}
        assert worst(by_generate(model, inputs, max_new_tokens=2, num_return_sequences=k, **arguments)) < 6


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@torch.no_grad()
def test_top_k_comes_before_the_nucleus(family):
    """6,000 targets have the distribution of `generate`, not that of another order or of one token more or less."""
    model, inputs, k = babbler(family, seed=0, peak=0.4), INPUTS[:2], 3000
    settings = {"top_p": 0.8, "temperature": 1.2, "top_k": 6}
    expected = [sequence_probabilities(model, ids, **settings) for ids in inputs]

    def worst(nucleus: Nucleus) -> float:
        torch.manual_seed(0)
        rows = sample(model, batch_of(model, inputs), nucleus, max_new_tokens=2, targets_per_input=k)
        targets = [cut(row) for row in rows]
        return max(surprise(targets[k * i : k * (i + 1)], expected[i]) for i in range(2))

    assert worst(Nucleus(**settings)) < 6
    for other in ({"top_k": 5}, {"top_k": 7}, {"top_k": 0}, {"top_p": 1.0}):
        assert worst(Nucleus(**settings | other)) > 6


def test_top_k_of_more_than_all_tokens_changes_nothing():
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0))

    def drawn(top_k: int) -> Tensor:
        torch.manual_seed(0)
        return draw(logits.clone(), Nucleus(0.9, top_k=top_k))

    assert torch.equal(drawn(300), drawn(0))
    assert torch.equal(drawn(10**6), drawn(0))
    assert not torch.equal(drawn(20), drawn(0))


def test_the_flags_reach_generate_and_the_loop():
    settings = {"temperature": 0.5, "top_p": 1.0, "top_k": 3}
    for kind in ("sampling_high", "sampling_beam_search"):
        decoding = decoding_of(kind, num_beams=2, targets_per_input=1, max_new_tokens=4, nucleus=settings)
        assert decoding.nucleus == Nucleus(1.0, 0.5, 3)
        assert settings.items() <= decoding.arguments.items()
    unset = dict.fromkeys(settings)
    usual = decoding_of("sampling_high", num_beams=2, targets_per_input=1, max_new_tokens=4, nucleus=unset)
    assert usual.nucleus == Nucleus(0.95, 1.5, 0)


# ---------------------------------------------------------------------------------------------------------- the nucleus


def definition(logits: list[float], top_p: float) -> set[int]:
    """The nucleus: tokens in the order of probability, then of index, until their mass reaches top_p."""
    weights = torch.tensor(logits, dtype=torch.float64).softmax(0).tolist()
    order = sorted((token for token in range(len(weights)) if weights[token] > 0), key=lambda t: (-weights[t], t))
    kept, mass = set(), 0.0
    for token in order:
        if mass >= top_p and kept:
            break
        kept.add(token)
        mass += weights[token]
    return kept


def normal(n: int, scale: float) -> list[float]:
    return (scale * torch.randn(n, generator=torch.Generator().manual_seed(n))).tolist()


ROWS = {
    "one token": [0.3],
    "one block": normal(BLOCK_SIZE, 2.0),
    "one token more than a block": normal(BLOCK_SIZE + 1, 2.0),
    "peaked": normal(3 * BLOCK_SIZE - 5, 6.0),
    "broad": normal(3 * BLOCK_SIZE - 5, 0.5),
    "flat": [0.25] * 301,
    "one-hot": [-1e4] * 170 + [0.0] + [-1e4] * 130,
    "pairs": [float(token // 2) / 8 for token in range(260)],
    "ties at the border": [3.0, *[1.0] * 200, *[-2.0] * 99],
    "mostly forbidden": [float("-inf")] * 250 + normal(50, 1.0),
    "bfloat16": torch.tensor(normal(300, 2.0)).bfloat16().tolist(),
}
TOP_PS = (0.0, 0.03, 0.3, 0.5, 0.9, 0.95, 0.999, 1.0)


@pytest.mark.parametrize("kind", ROWS)
def test_the_nucleus_is_that_of_the_definition(monkeypatch, kind):
    """Every token proposed once: accepted are those of the nucleus and no others."""
    logits = torch.tensor([ROWS[kind]])
    tokens = torch.isfinite(logits[0]).nonzero()  # what has no mass is never proposed
    repeated = logits.expand(len(tokens), -1)
    for top_p in TOP_PS:
        weighed = nucleus_module._blocks_of(repeated.clone(), Nucleus(top_p))
        weights = weighed.weights.flatten(1).gather(1, tokens)
        with monkeypatch.context() as patched:
            patched.setattr(nucleus_module, "_draw_from_all", lambda *_, weights=weights: (tokens, weights))
            _, accepted = nucleus_module._draw_and_check(weighed, torch.arange(len(tokens)))
        with_mass = set(tokens[:, 0][weights[:, 0] > 0].tolist())
        assert set(tokens[:, 0][accepted].tolist()) & with_mass == definition(ROWS[kind], top_p)


def test_no_weight_is_larger_than_what_is_known_of_its_block():
    """To within the rounding that is allowed for: exponentials at the end of a tensor may differ in their last bit."""
    torch.manual_seed(0)
    for n_rows, vocabulary in product(range(1, 6), range(1, 2000, 37)):
        rows = nucleus_module._blocks_of(5 * torch.randn(n_rows, vocabulary), Nucleus(0.95))
        assert (rows.weights.amax(dim=-1) <= rows.tops * (1 + nucleus_module.WEIGHT_ERROR)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [3 * BLOCK_SIZE, 3 * BLOCK_SIZE - 5])
@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_weights_are_those_of_softmax_however_many_rows_are_weighed_at_once(monkeypatch, at_once, vocabulary, dtype):
    monkeypatch.setattr(nucleus_module, "CPU_LOGITS_AT_ONCE", at_once * vocabulary)
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, vocabulary)).to(dtype)
    expected = (logits.double() / 0.7).softmax(dim=-1)
    weighed = nucleus_module._blocks_of(logits.clone(), Nucleus(0.9, temperature=0.7))
    probabilities = weighed.weights.flatten(1).double() / weighed.upto[:, -1:]
    torch.testing.assert_close(probabilities[:, :vocabulary], expected, rtol=1e-5, atol=1e-9)
    assert (probabilities[:, vocabulary:] == 0).all()
    torch.testing.assert_close(weighed.sums, weighed.weights.sum(dim=-1, dtype=torch.float64), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("kind", ROWS)
def test_every_token_has_its_share_of_the_unit_interval(monkeypatch, kind):
    """Evenly spaced numbers instead of random ones: each token as often as its probability says, to within one."""
    n = 4000
    logits = torch.tensor([ROWS[kind]])
    places = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[:, None]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: places)
    counts = draw(logits.expand(n, -1).clone(), Nucleus(1.0)).bincount(minlength=logits.shape[1])
    shares = n * logits[0].double().softmax(0)
    assert (counts - shares).abs().max() < 1 + 1e-3
    assert (counts[shares == 0] == 0).all()


@pytest.mark.parametrize("place", [0.0, 1 - 2**-53])
@pytest.mark.parametrize("kind", ROWS)
def test_the_ends_of_the_interval_are_tokens_with_mass(monkeypatch, kind, place):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([[place]], dtype=torch.float64))
    logits = torch.tensor([ROWS[kind]])
    [token] = draw(logits.clone(), Nucleus(1.0)).tolist()
    assert logits.double().softmax(-1)[0, token] > 0


def test_rows_are_drawn_from_their_own_distributions():
    """Many more rows than are handled at a time, each with two tokens of its own."""
    n_rows = 3 * nucleus_module.CPU_LOGITS_AT_ONCE // 1000 + 1
    logits = torch.full((n_rows, 1000), -30.0)
    first = torch.arange(n_rows)[:, None] % 500
    logits.scatter_(1, torch.cat([first, first + 500], dim=1), 5.0)
    torch.manual_seed(0)
    tokens = draw(logits, Nucleus(0.95))
    assert ((tokens - first[:, 0]) % 500 == 0).all()
    upper = (tokens >= 500).double().mean()
    assert abs(upper - 0.5) < 0.1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("level", [-3e4, -100.0, 0.0, 100.0, 3e4])
def test_the_level_of_the_logits_does_not_matter(level, temperature):
    """What is added to all of them, as far as float32 holds the sum."""
    logits = torch.arange(40.0).repeat(3, 10) / 8
    torch.manual_seed(0)
    expected = draw(logits.clone(), Nucleus(0.9, temperature))
    torch.manual_seed(0)
    assert draw(logits + level, Nucleus(0.9, temperature)).tolist() == expected.tolist()


def test_the_temperature_comes_before_the_nucleus():
    logits = torch.tensor([[2.0, 1.0, 0.0]]).expand(500, -1)  # 0.67, 0.24, 0.09; at 0.25: 0.982, …
    assert set(draw(logits.clone(), Nucleus(0.95, 0.25)).tolist()) == {0}
    assert set(draw(logits.clone(), Nucleus(0.95)).tolist()) == {0, 1, 2}
    assert set(draw(logits.clone(), Nucleus(0.9)).tolist()) == {0, 1}


@pytest.mark.parametrize("top_p", [0.95, 1.0])
@pytest.mark.parametrize("values", [[float("nan"), 0.0], [float("inf"), 0.0], [float("-inf")] * 2])
def test_a_row_without_a_distribution_is_an_error(values, top_p):
    with pytest.raises(RuntimeError, match="not finite"):
        draw(torch.tensor([[0.0, 1.0], values]), Nucleus(top_p))


# ------------------------------------------------------------------------------------------- generation configs, models


@few_families
@pytest.mark.parametrize(
    "fields",
    [
        {"suppress_tokens": [2, 3, 4, 5]},
        {"bad_words_ids": [[2], [3], [EOS], [6]]},
        {"forced_eos_token_id": EOS},
        {"forced_eos_token_id": [7, 8]},
        {"forced_bos_token_id": 6},
        {"forced_bos_token_id": 6, "forced_eos_token_id": EOS, "bad_words_ids": [[6], [4]], "suppress_tokens": [5]},
        {"eos_token_id": [EOS, 5, 7]},
    ],
    ids=lambda fields: " ".join(fields),
)
def test_tokens_that_are_forced_or_forbidden_are_those_of_generate(family, fields):
    changed = False
    inputs = ([4], [3]) if "forced_bos_token_id" in fields else INPUTS  # decoder-only: for a prompt of one token
    for seed in range(3):
        model = babbler(family, seed=seed, eos_bias=0.0)
        plain = greedy(model, inputs, length=6)
        for name, value in fields.items():
            setattr(model.generation_config, name, value)
        assert why_unsupported(model) is None
        ends = fields.get("eos_token_id", [EOS])
        got = sample(model, batch_of(model, inputs), None, max_new_tokens=6)
        batch = batch_of(model, inputs)
        rows = model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=6, do_sample=False
        )
        rows = rows[:, 1 if model.config.is_encoder_decoder else batch.input_ids.shape[1] :]
        assert [cut(row, ends) for row in got] == [cut(row, ends) for row in rows]
        changed = changed or [cut(row) for row in got] != plain
    assert changed, "the fields must make a difference"


def test_a_forced_token_is_drawn_too():
    model = babbler("bart", seed=0, peak=0.1, eos_bias=-50.0)
    model.generation_config.forced_bos_token_id, model.generation_config.forced_eos_token_id = 6, EOS
    rows = sample(model, batch_of(model, INPUTS), Nucleus(0.95), max_new_tokens=4, targets_per_input=5)
    assert (rows[:, 0] == 6).all()
    assert (rows[:, 3] == EOS).all()


NOT_OURS = {
    "encoder_repetition_penalty": 1.2, "bad_words_ids": [[3, 4]], "begin_suppress_tokens": [3],
    "encoder_no_repeat_ngram_size": 2, "typical_p": 0.5, "min_p": 0.1, "top_h": 0.4, "epsilon_cutoff": 0.01,
    "eta_cutoff": 0.01, "stop_strings": ["a"], "max_time": 9.0, "guidance_scale": 1.5, "sequence_bias": [[[3], 2.0]],
    "exponential_decay_length_penalty": (2, 1.1), "renormalize_logits": True, "penalty_alpha": 0.5,
    "prompt_lookup_num_tokens": 3, "cache_implementation": "quantized", "remove_invalid_values": True,
    "a_field_of_a_later_version": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_OURS)
def test_fields_that_the_loop_does_not_know_are_left_to_generate(name):
    model = babbler("t5", seed=0)
    assert why_unsupported(model) is None
    setattr(model.generation_config, name, NOT_OURS[name])
    assert why_unsupported(model) == f"its generation config sets {name}"


def test_neutral_values_are_no_reason():
    model = babbler("t5", seed=0)
    for name, value in {
        **NEUTRAL,
        "top_k": 50,
        "temperature": 0.3,
        "max_length": 5,
        "use_cache": True,
    }.items():
        setattr(model.generation_config, name, value)
    assert why_unsupported(model) is None
    assert greedy(model, INPUTS) == greedy(babbler("t5", seed=0), INPUTS)


def test_generate_takes_over_with_one_warning_for_each_reason(caplog):
    model = babbler("gpt2", seed=0, eos_bias=-50.0)
    batch, decoding = batch_of(model, INPUTS), Decoding(max_new_tokens=9)
    with caplog.at_level(logging.WARNING, logger=sampling_support.__name__):
        write_tokens(model, batch, decoding)
        assert not caplog.messages
        model.generation_config.renormalize_logits = True
        model.generation_config.no_repeat_ngram_size = 1
        rows = [[cut(row) for row in write_tokens(model, batch, decoding)] for _ in range(2)]
        assert rows[0] == rows[1] == by_generate(model, INPUTS, max_new_tokens=9, do_sample=False)
        assert all(len(set(row)) == len(row) > 5 for row in rows[0])
        model.generation_config.remove_invalid_values = True
        write_tokens(model, batch, decoding)
        write_tokens(model, batch, decoding)
    assert len(caplog.messages) == 2
    assert "renormalize_logits" in caplog.messages[0]
    assert "remove_invalid_values" in caplog.messages[1]


def tiny_causal_model(model_type: str, **config):
    sizes = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    ids = {"pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **heads, **ids, **config}))
    model.generation_config = safe_generation_config(model.config)
    return model.eval()


@pytest.mark.parametrize(
    ("model_type", "config", "reason"),
    [
        ("mistral", {"sliding_window": 4}, "its cache"),
        ("phi3", {"sliding_window": None}, "Phi3ForCausalLM prepares"),
        ("biogpt", {}, "'biogpt' is not known"),
    ],
)
def test_models_that_the_loop_does_not_know_are_left_to_generate(caplog, model_type, config, reason):
    model = tiny_causal_model(model_type, **config)
    assert reason in (why_unsupported(model) or "")
    got = [cut(row) for row in write_tokens(model, batch_of(model, INPUTS), Decoding(max_new_tokens=6))]
    assert got == by_generate(model, INPUTS, max_new_tokens=6, do_sample=False)
    assert reason in caplog.text


def test_full_attention_of_a_family_that_may_slide_is_no_reason():
    model = tiny_causal_model("mistral", sliding_window=None)
    assert why_unsupported(model) is None
    assert greedy(model, INPUTS, length=6) == by_generate(model, INPUTS, max_new_tokens=6, do_sample=False)


@pytest.mark.parametrize("start", [None, [0, 0, 0, 0]])
def test_a_start_that_differs_by_row_is_left_to_generate(start):
    model = babbler("t5", seed=0)
    model.generation_config.decoder_start_token_id = start
    assert why_unsupported(model) == "its targets have no single start token"
    model.generation_config.bos_token_id, model.generation_config.decoder_start_token_id = 3, None
    assert why_unsupported(model) is None
    assert greedy(model, INPUTS) == by_generate(model, INPUTS, max_new_tokens=10, do_sample=False)


def test_a_model_that_keeps_no_cache_is_left_to_generate():
    model = babbler("gpt2", seed=0).train()
    model.transformer.gradient_checkpointing = True
    assert "gradient checkpointing" in (why_unsupported(model) or "")
    assert why_unsupported(model.eval()) is None
