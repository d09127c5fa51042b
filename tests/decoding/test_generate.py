"""Generation types on tiny models: the texts, their order, and their distribution."""

from collections import Counter

import pytest
import torch
from conftest import slow
from tiny_runs import gen_flags
from torch import nn
from transformers import GenerationConfig

import gen_main
import simulate_api_main
from src.config.constants import GENERATION_TYPES
from src.config.errors import NotFiniteError, UserError
from src.decoding import generator
from src.decoding.diverse_beams import diverse_beam_search
from src.decoding.generate import finish_reasons, to_texts, write_tokens
from src.decoding.settings import Decoding, decoding_of
from src.models.generation_config import safe_generation_config
from src.models.new_models import ModelSizes, build_from_scratch
from src.tokens.batch import Batch, pad_sequences
from src.tokens.ragged import Ragged

PAD, EOS = 0, 1
INPUTS = ([3, 4, 5], [6, 7], [8, 9, 10, 11, 2], [4])
ENCODER_DECODERS = ("t5", "bart")
TEMPERATURES = {"sampling": 1.0, "sampling_low": 0.75, "sampling_high": 1.5}  # as published
TOP_P = 0.95


def babbler(family: str, *, seed: int, vocabulary: int = 12, peak: float = 1.0, eos_bias: float = 1.0):
    """A random model that writes: an output projection of its own, with bias, so that the next token is no copy.

    peak: 1 puts about half of the mass on one token, 100 nearly all.
    """
    sizes = ModelSizes(
        vocab_size=vocabulary, pad_token_id=PAD, eos_token_id=EOS, n_encoder_layers=1, n_decoder_layers=2, d_model=16,
        d_ff=32, n_heads=2, dropout=0.0, max_position_embeddings=64,
    )  # fmt: skip
    model = build_from_scratch(family, sizes, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    model.lm_head = nn.Linear(16, vocabulary)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        model.lm_head.weight.mul_(peak * (8 if family == "t5" else 1))  # tied T5 divides by √16 before the projection
        model.lm_head.bias.zero_()[EOS] = eos_bias * peak
    model.generation_config = safe_generation_config(model.config)
    return model


def batch_of(model, inputs) -> Batch:
    input_ids, mask = pad_sequences(
        [Ragged.of([ids])[0] for ids in inputs], PAD, on_the_left=not model.config.is_encoder_decoder
    )
    return Batch(input_ids, mask, None, tuple(range(len(inputs))))


def cut(row: torch.Tensor | list[int], eos: tuple[int, ...] = (EOS,)) -> list[int]:
    """A row of written tokens up to its first EOS, EOS included."""
    row = row.tolist() if isinstance(row, torch.Tensor) else row
    ends = [place + 1 for place, token in enumerate(row) if token in eos]
    return row[: ends[0]] if ends else row


def written(model, inputs, decoding: Decoding) -> list[list[list[int]]]:
    """For each input its K targets, as token lists up to EOS."""
    rows = [cut(row) for row in write_tokens(model, batch_of(model, inputs), decoding)]
    k = decoding.targets_per_input
    assert len(rows) == k * len(inputs)
    return [rows[k * i : k * (i + 1)] for i in range(len(inputs))]


def beams(generation_type: str, *, num_beams: int = 4, k: int = 2, length: int = 6) -> Decoding:
    return decoding_of(generation_type, num_beams=num_beams, targets_per_input=k, max_new_tokens=length)


# ------------------------------------------------------------------------------------------------- all generation types


@pytest.mark.parametrize(
    ("generation_type", "num_beams"), [*((name, 4) for name in GENERATION_TYPES), ("beam_search", 1)]
)
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_a_model_that_computes_no_numbers_writes_nothing(family, generation_type, num_beams):
    """Beams and the most probable token would be chosen from NaN all the same."""
    model = babbler(family, seed=3)
    decoding = beams(generation_type, num_beams=num_beams, k=1)
    write_tokens(model, batch_of(model, INPUTS), decoding)
    with torch.no_grad():
        model.get_input_embeddings().weight[3:].fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="^the model computes NaN or infinity$"):
        write_tokens(model, batch_of(model, INPUTS), decoding)


@pytest.mark.parametrize("generation_type", GENERATION_TYPES)
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_every_generation_type_writes_k_targets_for_each_input(family, generation_type):
    """Nearly all mass on one token: whatever the type, an input's first target is the same alone and in a batch."""
    model = babbler(family, seed=3, peak=100.0)
    decoding = beams(generation_type)
    torch.manual_seed(0)
    rows = write_tokens(model, batch_of(model, INPUTS), decoding)
    assert rows.shape[0] == 2 * len(INPUTS)
    assert 1 <= rows.shape[1] <= 6
    torch.manual_seed(0)
    alone = [written(model, [ids], decoding)[0] for ids in INPUTS]
    together = written(model, INPUTS, decoding)
    assert [targets[0] for targets in together] == [targets[0] for targets in alone]
    assert len({tuple(targets[0]) for targets in together}) > 1, "the inputs must lead to different targets"
    if generation_type in TEMPERATURES:
        assert all(first == second for first, second in together)


@pytest.mark.parametrize("generation_type", ["beam_search", "diverse_beam_search"])
@pytest.mark.parametrize("family", ["t5", "llama", *slow("bart", "gpt2", "opt")])
def test_a_batch_gives_what_its_inputs_give_alone(family, generation_type):
    """Left padding of decoder-only models, masks of encoders, and how long the other inputs take change nothing."""
    lengths = set()
    for seed in range(3):
        model, decoding = babbler(family, seed=seed), beams(generation_type, k=4, length=8)
        together = written(model, INPUTS, decoding)
        assert together == [written(model, [ids], decoding)[0] for ids in INPUTS]
        lengths |= {len(target) for targets in together for target in targets}
    assert len(lengths) > 2, "hypotheses must end at different lengths, or the test sees little"


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize(
    ("generation_type", "num_beams", "length_penalty"),
    [("beam_search", 1, 1.0), ("beam_search", 3, 1.0), ("beam_search_short", 3, 0.4), ("beam_search_long", 3, 2.0)],
)
def test_greedy_and_beam_search_are_those_of_generate(family, generation_type, num_beams, length_penalty):
    model = babbler(family, seed=1)
    batch = batch_of(model, INPUTS)
    plain = model.generate(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=8, do_sample=False,
        num_beams=num_beams, num_return_sequences=num_beams, length_penalty=length_penalty,
    )  # fmt: skip
    start = 1 if family == "t5" else batch.input_ids.shape[1]
    got = write_tokens(model, batch, beams(generation_type, num_beams=num_beams, k=num_beams, length=8))
    assert [cut(row) for row in got] == [cut(row) for row in plain[:, start:]]


def test_greedy_takes_the_most_probable_token_each_time():
    model = babbler("gpt2", seed=0)
    ids = list(INPUTS[0])
    for _ in range(6):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert written(model, INPUTS[:1], beams("beam_search", num_beams=1, k=1))[0][0] == cut(ids[3:])


def test_the_length_penalty_lengthens():
    """A larger exponent divides a longer target's log-probability by more."""

    def mean_length(generation_type: str) -> float:
        decoding = beams(generation_type, k=1, length=12)
        lengths = [
            len(target) for seed in range(4) for [target] in written(babbler("gpt2", seed=seed), INPUTS, decoding)
        ]
        return sum(lengths) / len(lengths)

    assert mean_length("beam_search_short") < mean_length("beam_search") < mean_length("beam_search_long")


@pytest.mark.parametrize("generation_type", GENERATION_TYPES)
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_max_new_tokens_is_the_most_that_is_written(family, generation_type):
    model = babbler(family, seed=0, eos_bias=-50.0)
    torch.manual_seed(0)
    assert write_tokens(model, batch_of(model, INPUTS), beams(generation_type, length=5)).shape == (8, 5)


@pytest.mark.parametrize("generation_type", GENERATION_TYPES)
@pytest.mark.parametrize("family", ["gpt2", *slow("t5")])
def test_the_pad_token_stands_after_eos(family, generation_type):
    """Also where the pad token is 0, which transformers' beam search takes for none and fills up with EOS."""
    ended_early = False
    for seed in range(4):
        model = babbler(family, seed=seed)
        torch.manual_seed(0)
        for row in write_tokens(model, batch_of(model, INPUTS), beams(generation_type, length=8)).tolist():
            after = row[len(cut(row)) :]
            assert set(after) <= {PAD}
            ended_early = ended_early or bool(after)
    assert ended_early


def test_a_model_without_eos_writes_to_the_end():
    for generation_type in ("sampling", "beam_search", "diverse_beam_search"):
        model = babbler("gpt2", seed=0)
        model.generation_config.eos_token_id = None
        assert write_tokens(model, batch_of(model, INPUTS), beams(generation_type, length=7)).shape == (8, 7)


def test_the_models_mode_is_left_alone():
    model = babbler("t5", seed=0).train()
    write_tokens(model, batch_of(model, INPUTS), beams("sampling"))
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("generation_type", [*TEMPERATURES, "sampling_beam_search"])
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_sampling_follows_torchs_seed(family, generation_type):
    model, decoding = babbler(family, seed=0, peak=0.3), beams(generation_type, length=10)

    def sampled(seed: int):
        torch.manual_seed(seed)
        return written(model, INPUTS, decoding)

    assert sampled(7) == sampled(7)
    assert sampled(7) != sampled(8)


@pytest.mark.parametrize("generation_type", TEMPERATURES)
def test_sampling_draws_from_the_nucleus_and_from_all_of_it(generation_type):
    """4,000 first tokens against the softmax at the type's temperature, cut to its top 95 % and renormalized.

    96 tokens, nearly equally probable: a top-k of 50, transformers' former default, would cut half of the nucleus.
    """
    model = babbler("gpt2", seed=0, vocabulary=96, peak=0.4, eos_bias=0.0)
    [ids] = INPUTS[:1]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    probabilities, tokens = (logits / TEMPERATURES[generation_type]).softmax(-1).sort(descending=True)
    kept = int((probabilities.cumsum(0) < TOP_P).sum()) + 1
    expected = torch.zeros(96, dtype=torch.float64)
    expected[tokens[:kept]] = probabilities[:kept] / probabilities[:kept].sum()
    assert 50 < kept < 96

    torch.manual_seed(0)
    n_draws = 4000
    drawn = write_tokens(model, batch_of(model, [ids]), beams(generation_type, k=n_draws, length=1)).flatten()
    counts = torch.bincount(drawn, minlength=96).double()
    assert counts[expected == 0].sum() == 0
    inside = expected > 0
    chi_square = ((counts - n_draws * expected)[inside] ** 2 / (n_draws * expected[inside])).sum()
    degrees = kept - 1
    assert chi_square < degrees + 4 * (2 * degrees) ** 0.5  # mean + 4 standard deviations


# -------------------------------------------------------------------------------------------------- diverse beam search


def log_probabilities(model, ids: list[int], hypotheses: list[list[int]]) -> torch.Tensor:
    """(hypotheses, V) of the next token, by a plain forward pass of unpadded sequences, without a cache."""
    if model.config.is_encoder_decoder:
        start = model.config.decoder_start_token_id
        inputs = {
            "input_ids": torch.tensor([ids] * len(hypotheses)),
            "decoder_input_ids": torch.tensor([[start, *tokens] for tokens in hypotheses]),
        }
    else:
        inputs = {"input_ids": torch.tensor([[*ids, *tokens] for tokens in hypotheses])}
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits[:, -1].log_softmax(-1)


def naive_diverse_beams(
    model, ids: list[int], *, groups: int, size: int, penalty: float, length: int, eos: tuple[int, ...] = (EOS,)
) -> list[list[int]]:
    """Vijayakumar et al. (2018) from the definition, in lists: all groups' finished hypotheses, the best first.

    LazyLogits are means per token of log-probabilities lowered by the Hamming penalty. A hypothesis may end while it is
    among its group's best `size`; a group stops when no live hypothesis, ended now, would be among its finished ones.
    """
    live: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(groups)]
    done: list[list[tuple[float, list[int]]]] = [[] for _ in range(groups)]
    stopped = [False] * groups
    for step in range(1, length + 1):
        chosen: Counter = Counter()
        running = [g for g in range(groups) if not stopped[g]]
        logs = iter(log_probabilities(model, ids, [tokens for g in running for _, tokens in live[g]]).tolist())
        for g in running:
            candidates = sorted(
                (
                    (score + log - penalty * chosen[token], [*tokens, token])
                    for score, tokens in live[g]
                    for token, log in enumerate(next(logs))
                ),
                key=lambda candidate: -candidate[0],
            )
            ending = [(s / step, t) for s, t in candidates[:size] if t[-1] in eos or step == length]
            done[g] = sorted([*done[g], *ending], key=lambda each: -each[0])[:size]
            live[g] = [(s, t) for s, t in candidates if t[-1] not in eos][:size]
            chosen.update(tokens[-1] for _, tokens in live[g])
            stopped[g] = len(done[g]) == size and done[g][-1][0] >= live[g][0][0] / step
        if all(stopped):
            break
    return [tokens for _, tokens in sorted((each for group in done for each in group), key=lambda each: -each[0])]


def diverse(groups: int, penalty: float, *, size: int = 2, k: int | None = None, length: int = 7) -> Decoding:
    n_beams = groups * size
    loop = diverse_beam_search(groups, penalty=penalty)
    return Decoding(length, k or n_beams, n_beams, loop=loop)


@pytest.mark.parametrize("family", ["t5", "bart", "gpt2", "llama"])
@pytest.mark.parametrize(("groups", "size"), [(2, 2), (3, 1), (1, 3), (2, 3)])
def test_diverse_beams_without_penalty_are_plain_beams(family, groups, size):
    """Every group then finds what plain beam search with the group's size finds."""
    for seed in range(2):
        model = babbler(family, seed=seed)
        plain = written(model, INPUTS, beams("beam_search", num_beams=size, k=size, length=7))
        got = written(model, INPUTS, diverse(groups, 0.0, size=size))
        assert got == [[target for target in targets for _ in range(groups)] for targets in plain]


@pytest.mark.parametrize("family", ["t5", "gpt2"])
@pytest.mark.parametrize(("groups", "size", "penalty"), [(2, 2, 1.0), (3, 2, 2.0), *slow((2, 2, 0.1), (4, 1, 0.5))])
def test_diverse_beams_are_those_of_the_definition(family, groups, size, penalty):
    lengths, changed = set(), False
    for seed in range(4):
        model = babbler(family, seed=seed)
        got = written(model, INPUTS, diverse(groups, penalty, size=size))
        for ids, targets in zip(INPUTS, got, strict=True):
            naive = naive_diverse_beams(model, ids, groups=groups, size=size, penalty=penalty, length=7)
            assert targets == naive
        lengths |= {len(target) for targets in got for target in targets}
        changed = changed or got != written(model, INPUTS, diverse(groups, 0.0, size=size))
    assert changed, "the penalty must have made a difference"
    assert len(lengths) > 2, "hypotheses must end at different lengths"


def test_several_eos_tokens_end_a_hypothesis():
    """Llama 3 and others have more than one; a step may end twice as many hypotheses."""
    ends = (EOS, 5, 7)
    seen = set()
    for seed in range(4):
        model = babbler("gpt2", seed=seed)
        model.generation_config.eos_token_id = list(ends)
        with torch.no_grad():
            model.lm_head.bias[list(ends)] += 1.5
        rows = write_tokens(model, batch_of(model, INPUTS), diverse(2, 0.5)).tolist()
        naive = [
            tokens
            for ids in INPUTS
            for tokens in naive_diverse_beams(model, ids, groups=2, size=2, penalty=0.5, length=7, eos=ends)
        ]
        assert [cut(row, ends) for row in rows] == naive
        seen |= {tokens[-1] for tokens in naive}
    assert set(ends) <= seen


def test_a_pad_token_that_the_model_writes_is_kept():
    """The width of the result is that of its longest target, not a count of what differs from the pad token."""
    model = babbler("gpt2", seed=0, eos_bias=-50.0)
    with torch.no_grad():
        model.lm_head.bias[PAD] = 50.0
    assert write_tokens(model, batch_of(model, INPUTS), diverse(2, 0.1, length=5)).tolist()[0] == [PAD] * 5


def test_eos_is_written_where_it_is_the_pad_token_too():
    model = babbler("gpt2", seed=0, eos_bias=50.0)
    model.generation_config.pad_token_id = EOS
    for generation_type in ("beam_search", "diverse_beam_search", "sampling"):
        decoding = beams(generation_type, num_beams=2, k=1)
        assert (write_tokens(model, batch_of(model, INPUTS), decoding)[:, 0] == EOS).all()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_best_of_all_groups_are_returned(k):
    model = babbler("t5", seed=2)
    best = written(model, INPUTS, diverse(2, 0.5, k=4))
    assert written(model, INPUTS, diverse(2, 0.5, k=k)) == [targets[:k] for targets in best]


def test_the_type_has_groups_of_two_beams_and_a_penalty_of_a_tenth():
    model = babbler("gpt2", seed=2, peak=0.3)
    got = written(model, INPUTS, beams("diverse_beam_search", num_beams=6, k=6, length=7))
    assert got == [naive_diverse_beams(model, ids, groups=3, size=2, penalty=0.1, length=7) for ids in INPUTS]


def test_groups_with_a_penalty_differ_more_than_plain_beams():
    """What it is for: more different tokens among an input's targets."""

    def different_tokens(decoding: Decoding) -> int:
        models = [babbler("t5", seed=seed) for seed in range(4)]
        return sum(
            len({token for target in targets for token in target})
            for model in models
            for targets in written(model, INPUTS, decoding)
        )

    assert different_tokens(diverse(2, 2.0)) > different_tokens(beams("beam_search", k=4, length=7))


# ---------------------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_texts_have_no_special_tokens_and_no_space_around(tiny_tokenizers, family):
    tokenizer = tiny_tokenizers[family]
    texts = ["The red cat sees a dog .", "", "Dog"]
    rows = [
        [*tokenizer(f" {text}" if text else "", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        for text in texts
    ]
    padded, _ = pad_sequences([Ragged.of([row])[0] for row in rows], tokenizer.pad_token_id, on_the_left=False)
    assert to_texts(tokenizer, padded) == texts
    assert to_texts(tokenizer, rows) == texts


# -------------------------------------------------------------------------------------------------------- why texts end


@pytest.mark.parametrize(
    ("eos", "forced", "expected"),
    [
        (EOS, None, ["stop", "length", "stop"]),
        ([EOS, 7], None, ["stop", "stop", "stop"]),
        (EOS, EOS, ["stop", "length", "length"]),
        (None, None, ["length"] * 3),
    ],
)
def test_why_texts_end(eos, forced, expected):
    """Three rows of at most four tokens: an early end, none, and an EOS at the limit, which may have been forced."""
    tokens = torch.tensor([[5, EOS, PAD, PAD], [5, 6, 7, 8], [5, 6, 6, EOS]])
    ids = GenerationConfig(eos_token_id=eos, forced_eos_token_id=forced, pad_token_id=PAD)
    assert finish_reasons(tokens, ids, 4) == expected


@pytest.mark.parametrize("script", [gen_main, simulate_api_main])
def test_a_number_format_that_is_too_small_is_named(script, tiny_models, tiny_dataset_path, tmp_path, monkeypatch):
    """Weights are checked when they are loaded; what they compute is not known before."""

    def overflow(*_, **__):
        raise NotFiniteError("the model computes NaN or infinity")

    monkeypatch.setattr(generator, "write_tokens", overflow)
    model = tiny_models["gpt2"]["teacher"]
    with pytest.raises(UserError, match=f"^{model}: the model computes NaN or infinity; try --mixed_precision no$"):
        script.main(gen_flags(model, tiny_dataset_path, tmp_path / "out"))
