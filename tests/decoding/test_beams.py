"""Our beam search gives the targets and scores of `generate` for every setting; its cache and its choices are exact."""

from itertools import product

import pytest
import torch
from conftest import ENCODER_DECODER_NAMES, FAMILY_NAMES
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's own abbreviation)
from transformers import AutoModelForCausalLM, GenerationMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from src.decoding import beams, best_tokens, sampling
from src.decoding.beam_cache import BeamTree
from src.decoding.beams import beam_search
from src.decoding.decoders import Decoder
from src.decoding.generate import behind_eos, write_tokens
from src.decoding.hypotheses import BeamSettings
from src.decoding.kv_cache import growing_cache
from src.decoding.sampling_support import why_unsupported
from src.decoding.settings import decoding_of
from src.models.generation_config import safe_generation_config
from src.models.lazy_logits import LazyLogits
from src.models.new_models import ModelSizes, build_from_scratch, new_config
from tests.decoding.test_generate import EOS, INPUTS, PAD, babbler, batch_of, cut

LENGTH = 9
SETTINGS = [  # k, returned, length penalty, early stopping
    (4, 4, 1.0, False), (4, 1, 1.0, True), (3, 3, 1.5, "never"), (2, 2, 0.4, False), (3, 3, 0.0, "never"),
    (3, 3, -0.5, False), (6, 6, 1.0, "never"),
]  # fmt: skip


def writer(family: str, vocabulary: int = 12, seed: int = 0):
    """A random model whose targets end at different lengths."""
    return babbler(family, seed=seed, vocabulary=vocabulary, eos_bias=4.0 if vocabulary == 12 else 6.0)


def by_generate(model, inputs, settings: BeamSettings) -> tuple[Tensor, Tensor]:
    """New tokens of `generate`, padded after EOS, and scores."""
    batch = batch_of(model, inputs)
    output = model.generate(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=settings.max_new_tokens,
        num_beams=settings.k, num_return_sequences=settings.returned, length_penalty=settings.length_penalty,
        early_stopping=settings.early_stopping, do_sample=False, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    start = 1 if model.config.is_encoder_decoder else batch.input_ids.shape[1]
    tokens, ids = output.sequences[:, start:], model.generation_config
    return tokens.masked_fill(behind_eos(tokens, ids), ids.pad_token_id), output.sequences_scores


def assert_equal_to_generate(model, inputs, settings: BeamSettings) -> Tensor:
    tokens, scores = beam_search(model, batch_of(model, inputs), settings)
    expected, expected_scores = by_generate(model, inputs, settings)
    assert tokens.tolist() == expected.tolist()
    torch.testing.assert_close(scores, expected_scores, rtol=1e-5, atol=1e-5)
    return tokens


# ---------------------------------------------------------------------------------------------------------- as generate


@pytest.mark.parametrize(
    ("family", "chosen"),
    [*((family, SETTINGS[0]) for family in FAMILY_NAMES), *product(("t5", "gpt2"), SETTINGS[1:])],
    ids=str,
)
def test_targets_and_scores_are_those_of_generate(monkeypatch, family, chosen):
    """Whether settled inputs leave at once or stay; with inputs of different lengths, and few or many tokens."""
    k, returned, penalty, stopping = chosen
    settings, lengths = BeamSettings(k, returned, LENGTH, penalty, stopping), set()
    for vocabulary, threshold in ((12, 1e-6), (1500, 2.0)):
        monkeypatch.setattr(beams, "COMPACTION_THRESHOLD", threshold)
        tokens = assert_equal_to_generate(writer(family, vocabulary), INPUTS, settings)
        lengths |= {len(cut(row)) for row in tokens}
    assert len(lengths) > 1, "targets must end at different steps, or the test sees little"


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_48_beams_are_those_of_generate(family):
    """More beams than tokens, so that beams without a score are among the best; and many tokens."""
    for vocabulary in (12, 1500):
        model = babbler(family, seed=0, vocabulary=vocabulary, peak=0.5)
        assert_equal_to_generate(model, INPUTS[:2], BeamSettings(48, 48, LENGTH))


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2"])
def test_models_that_do_not_attend_by_sdpa_are_searched_too(family):
    """Their caches are reordered."""
    model = writer(family)
    model.set_attn_implementation("eager")
    assert_equal_to_generate(model, INPUTS, BeamSettings(4, 4, LENGTH))


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize(
    "fields",
    [
        {"suppress_tokens": [2, 3, 4, 5]},
        {"bad_words_ids": [[2], [3], [EOS], [6]]},
        {"forced_eos_token_id": EOS},
        {"forced_bos_token_id": 6},
        {"eos_token_id": [EOS, 2, 3, 5, 7]},
        {"eos_token_id": None},
        {"repetition_penalty": 1.5, "min_new_tokens": 4},
        {"no_repeat_ngram_size": 2},
    ],
    ids=lambda fields: " ".join(fields),
)
def test_the_generation_config_acts_as_in_generate(family, fields):
    # `generate` forces a first token only behind a prompt of one token, and penalizes padding
    inputs = ([4], [3]) if fields.keys() & {"forced_bos_token_id", "repetition_penalty"} else INPUTS
    changed = False
    for vocabulary, seed in ((12, 0), (1500, 0)):
        model, settings = writer(family, vocabulary, seed), BeamSettings(3, 3, 6)
        plain = beam_search(model, batch_of(model, inputs), settings)[0].tolist()
        for name, value in fields.items():
            setattr(model.generation_config, name, value)
        assert why_unsupported(model) is None
        changed = assert_equal_to_generate(model, inputs, settings).tolist() != plain or changed
    assert changed, "the fields must make a difference"


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_heads_that_share_keys(implementation):
    config = new_config("llama", ModelSizes(40, PAD, EOS, 1, 2, 16, 32, 4, 0.0, 64))
    config.num_key_value_heads = 2
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    model.generation_config = safe_generation_config(model.config)
    assert_equal_to_generate(model, INPUTS, BeamSettings(4, 4, LENGTH))


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_bfloat16_by_autocast(family):
    model = babbler(family, seed=1, peak=100.0)
    settings = BeamSettings(3, 1, 6)
    with torch.autocast("cpu", torch.bfloat16):
        tokens, _ = beam_search(model, batch_of(model, INPUTS), settings)
        assert tokens.tolist() == by_generate(model, INPUTS, settings)[0].tolist()


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_as_many_inputs_at_once_as_fit(monkeypatch, family):
    model, settings = writer(family), BeamSettings(3, 2, LENGTH)
    expected, scores = beam_search(model, batch_of(model, INPUTS), settings)
    monkeypatch.setattr(sampling, "MEMORY", 0)
    sizes, search = [], beams._search
    monkeypatch.setattr(beams, "_search", lambda *args: sizes.append(len(args[1].input_ids)) or search(*args))
    alone, scores_alone = beam_search(model, batch_of(model, INPUTS), settings)
    assert alone.tolist() == expected.tolist()
    torch.testing.assert_close(scores_alone, scores)
    assert sizes == [1] * len(INPUTS)


@pytest.mark.parametrize(("kind", "ours"), [("beam_search", True), ("sampling_beam_search", False)])
def test_beams_that_sample_are_left_to_generate(monkeypatch, kind, ours):
    called, generate = [], GenerationMixin._beam_search
    monkeypatch.setattr(
        GenerationMixin, "_beam_search", lambda *args, **given: called.append(1) or generate(*args, **given)
    )
    model = babbler("t5", seed=0)
    decoding = decoding_of(kind, num_beams=2, targets_per_input=2, max_new_tokens=4)
    assert len(write_tokens(model, batch_of(model, INPUTS), decoding)) == 2 * len(INPUTS)
    assert len(called) == (not ours)


@pytest.mark.parametrize("early_stopping", [None, True, "never"])
@pytest.mark.parametrize("kind", ["beam_search", "beam_search_short"])
def test_the_models_own_settings_hold_unless_the_type_sets_them(kind, early_stopping):
    model = writer("t5")
    model.generation_config.length_penalty, model.generation_config.early_stopping = -1.0, early_stopping
    decoding = decoding_of(kind, num_beams=3, targets_per_input=3, max_new_tokens=LENGTH)
    penalty = 0.4 if kind == "beam_search_short" else -1.0
    expected = by_generate(model, INPUTS, BeamSettings(3, 3, LENGTH, penalty, early_stopping or False))[0]
    assert write_tokens(model, batch_of(model, INPUTS), decoding).tolist() == expected.tolist()


# ------------------------------------------------------------------------------------------------------------ less work


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_settled_inputs_leave(monkeypatch, family):
    """The vocabulary sees only unsettled inputs; the first tokens are chosen once per input."""
    seen, stock, fallen = [], beams.best_tokens, False
    monkeypatch.setattr(beams, "best_tokens", lambda logits, *rest: seen.append(len(logits)) or stock(logits, *rest))
    for seed in range(3):
        seen.clear()
        model = writer(family, 1500, seed)
        beam_search(model, batch_of(model, INPUTS), BeamSettings(4, 1, LENGTH, early_stopping=True))
        assert seen[:2] == [len(INPUTS), 4 * len(INPUTS)]
        assert seen[1:] == sorted(seen[1:], reverse=True)
        fallen = fallen or seen[-1] < seen[1]
    assert fallen, "some inputs must be settled before others"


@pytest.mark.parametrize("family", ENCODER_DECODER_NAMES)
def test_sources_are_projected_once_per_input(family):
    model = babbler(family, seed=0)
    names = ("EncDecAttention.k", "EncDecAttention.v", "encoder_attn.k_proj", "encoder_attn.v_proj")
    seen = []
    for name, module in model.named_modules():
        if name.endswith(names):
            module.register_forward_hook(lambda _, args, output: seen.append(len(output)))
    beam_search(model, batch_of(model, INPUTS), BeamSettings(5, 1, 6))
    assert seen == [len(INPUTS)] * 4


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_beams_share_what_they_have_in_common(monkeypatch, family):
    """Prompt and tokens are stored once per input, and those that no beam continues are dropped."""
    k, length, entries, step = 4, 40, [], Decoder.follow
    monkeypatch.setattr(
        Decoder, "follow", lambda self, rows: step(self, rows) or entries.append(self._attention.tree.n_entries)
    )
    model = babbler(family, seed=0, eos_bias=-9.0)
    beam_search(model, batch_of(model, INPUTS), BeamSettings(k, 1, length))
    assert len(entries) == length - 1
    assert max(entries) < k * length, entries


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_everything_is_as_it_was_after_an_error(monkeypatch, family):
    model, stock = babbler(family, seed=0), ALL_ATTENTION_FUNCTIONS["sdpa"]

    def fail(*_) -> Tensor:
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is not stock
        raise KeyboardInterrupt

    monkeypatch.setattr(beams, "best_tokens", fail)
    with pytest.raises(KeyboardInterrupt):
        beam_search(model, batch_of(model, INPUTS), BeamSettings(2, 1, 3))
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is stock
    assert not model.lm_head._forward_pre_hooks


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2"])
def test_dropout_acts_in_training_mode_alone(family):
    sizes = ModelSizes(12, PAD, EOS, 1, 1, 16, 32, 2, 0.5, 64)
    model = build_from_scratch(family, sizes, seed=0)
    model.generation_config = safe_generation_config(model.config)
    model.generation_config.eos_token_id = None
    batch, settings = batch_of(model, INPUTS), BeamSettings(4, 4, 6)
    scores = [beam_search(model.train(is_training), batch, settings)[1] for is_training in (False, False, True, True)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[2], scores[3])


# ------------------------------------------------------------------------------------------------------------ the parts


@pytest.mark.parametrize(
    ("n_key_heads", "with_bias", "dtype"),
    [(4, False, torch.float32), (4, True, torch.float32), (2, False, torch.float32), (4, True, torch.bfloat16)],
)
def test_attention_to_the_tree_is_that_to_reordered_caches(n_key_heads, with_bias, dtype):
    """Over many steps, with padded prompts, inputs that leave, and beams in any order."""
    generator = torch.Generator().manual_seed(0)
    n_inputs, k, n_heads, size, n_layers = 4, 3, 4, 8, 2

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    prompt = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 1]])
    own, plain = growing_cache(), growing_cache()
    for layer in range(n_layers):
        keys, values = random(2, n_inputs, n_key_heads, 4, size)
        own.update(keys, values, layer)
        plain.update(keys, values, layer)
    tree, mask = BeamTree(own, k, prompt), prompt.repeat_interleave(k, dim=0).bool()
    plain.reorder_cache(torch.arange(n_inputs).repeat_interleave(k))
    for step in range(30):
        if step in (9, 20):
            kept = torch.tensor([0, 2, 3] if step == 9 else [1, 2])
            rows = (kept[:, None] * k + torch.arange(k)).flatten()
            tree.keep(kept)
            plain.reorder_cache(rows)
            mask, n_inputs = mask[rows], len(kept)
        parents = torch.randint(k, (n_inputs, k), generator=generator) + k * torch.arange(n_inputs)[:, None]
        tree.follow(parents.flatten())
        plain.reorder_cache(parents.flatten())
        mask = F.pad(mask, (0, 1), value=True)
        bias = random(1, n_heads, 1, 40) if with_bias else None
        assert own.get_seq_length() == plain.get_seq_length()
        for layer in range(n_layers):
            query, (keys, values) = (
                random(n_inputs * k, n_heads, 1, size),
                random(2, n_inputs * k, n_key_heads, 1, size),
            )
            held = own.update(keys, values, layer)
            keys, values = (
                each.repeat_interleave(n_heads // n_key_heads, 1) for each in plain.update(keys, values, layer)
            )
            summand = torch.where(mask[:, None, None], 0.0, -torch.inf).to(dtype)
            if bias is not None:
                summand = summand + bias[..., : mask.shape[1]]
            expected = F.scaled_dot_product_attention(query, keys, values, attn_mask=summand, scale=0.5)
            assert tree.owns(held[0])
            made = tree.attend(query, *held, 0.5, bias, 0.0)
            torch.testing.assert_close(
                made, expected.transpose(1, 2), **({} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.05})
            )
    assert tree.n_entries < 4 + 30 * k


@pytest.mark.parametrize(("vocabulary", "k", "at_once"), product([1024, 1087, 5000], [1, 5, 48], [2**23, 1]))
def test_the_best_tokens_are_those_of_all_scores(monkeypatch, vocabulary, k, at_once):
    """With and without tokens behind the last block; all inputs at once, or one by one; forbidden tokens."""
    monkeypatch.setattr("src.models.lazy_logits.CPU_CHUNK", at_once)
    monkeypatch.setattr("src.models.lazy_logits.LEAST_ROWS", 1)
    monkeypatch.setattr(best_tokens, "CPU_LOGITS_AT_ONCE", 3 * vocabulary)
    generator = torch.Generator().manual_seed(0)
    n_inputs, n_candidates = 3, 2 * k
    logits = 3 * torch.randn(n_inputs * k, vocabulary, generator=generator)
    logits[:, -3] = logits.amax(dim=1) + 1  # behind the last block, if one is
    scores = torch.randn(n_inputs, k, generator=generator)
    forbidden = torch.tensor([5, 700])
    made = best_tokens.best_tokens(
        LazyLogits(logits),
        scores,
        n_candidates,
        lambda log_probs, rows: log_probs.index_fill_(1, forbidden, -torch.inf),
    )
    log_probs = logits.log_softmax(dim=-1).index_fill(1, forbidden, -torch.inf)
    expected, places = (log_probs.view(n_inputs, k, -1) + scores[:, :, None]).flatten(1).topk(n_candidates)
    assert torch.equal(made.scores, expected)
    assert torch.equal(made.beams * vocabulary + made.tokens, places)
