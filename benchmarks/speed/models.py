"""Random models and batches of the sizes that a row asks for, equal in every process.

Shapes: N states, V vocabulary, D width, B rows, S source tokens, T target tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, T5ForConditionalGeneration

from benchmarks.speed.rows import Learning, Lengths, Shape, Writing
from src.config.constants import IGNORE_INDEX
from src.models.new_models import ModelSizes, build_from_scratch, family_to_build
from src.tokens.batch import Batch
from src.tokens.collate import pad_sequences

PAD, EOS, FIRST_WORD = 0, 1, 3
TOP, MASS = 256, 0.9999  # of a trained model of 32,128 tokens, the 256 likeliest hold 99.99 % on average
AMPLIFIED = 100.0  # the last layer's output over the embedding of the token before it, which is tied to the logits
Pairs = Sequence[tuple[int, int]]  # tokens of input and target


def build(family: str, vocabulary: int, shape: Shape, *, dropout: float, seed: int) -> PreTrainedModel:
    """A model with random weights; attention over any length that a row has."""
    sizes = ModelSizes(
        vocab_size=vocabulary,
        pad_token_id=PAD,
        eos_token_id=EOS,
        n_encoder_layers=shape.layers,
        n_decoder_layers=shape.layers,
        d_model=shape.width,
        d_ff=shape.feed_forward,
        n_heads=shape.heads,
        dropout=dropout,
    )
    return build_from_scratch(family, sizes, seed=seed)


def batch_of(work: Learning | Writing, pairs: Pairs = (), *, seed: int = 0) -> Batch:
    """Random tokens in sequences of the lengths that the row asks for, or of `pairs` where it asks for a spread."""
    rng = np.random.default_rng(seed)
    inputs = _lengths(work.inputs, [pair[0] for pair in pairs], work.rows, rng)
    is_encoder_decoder = isinstance(work, Writing) or family_to_build(work.family).is_encoder_decoder

    def words(length: int) -> np.ndarray:
        tokens = rng.integers(FIRST_WORD, work.vocabulary, length)
        tokens[-1] = EOS
        return tokens

    ids, mask = pad_sequences([words(n) for n in inputs], PAD, on_the_left=not is_encoder_decoder)
    batch = Batch(ids, mask, None, tuple(range(work.rows)))
    if isinstance(work, Writing):
        return batch
    targets = _lengths(work.labels, [pair[1] for pair in pairs], work.rows, rng)
    return replace(batch, labels=pad_sequences([words(n) for n in targets], IGNORE_INDEX, on_the_left=False)[0])


def _lengths(lengths: Lengths, real: Sequence[int], n: int, rng: np.random.Generator) -> np.ndarray:
    drawn = lengths.median * np.exp(lengths.spread * rng.standard_normal(n))
    if len(real) and lengths.spread:
        drawn = np.resize(real, n)
    return drawn.round().astype(int).clip(2, lengths.limit)


@torch.no_grad()
def trained_like(writing: Writing, *, seed: int = 0) -> T5ForConditionalGeneration:
    """A T5 with random weights whose distributions are peaked, and which ends its rows at different lengths.

    A stock tied T5 copies the token before; here the last layer's output drowns its embedding. The first dimension
    of the decoder's stream is the same everywhere, which makes EOS's weight there a bias. Two numbers are then tuned on
    states of random prefixes: the final norm's weight, until the TOP likeliest tokens hold MASS on average, and that
    bias, until EOS is as likely as rows of the mean length need; how likely it is varies by state, and lengths with it.
    """
    model = build("t5", writing.vocabulary, writing.model, dropout=0.0, seed=seed)
    decoder, embedding = model.decoder, model.shared.weight
    embedding[:, 0] = 1.0
    for block in decoder.block:
        for written in (
            block.layer[0].SelfAttention.o,
            block.layer[1].EncDecAttention.o,
            block.layer[2].DenseReluDense.wo,
        ):
            written.weight[0] = 0.0
    decoder.block[-1].layer[2].DenseReluDense.wo.weight *= AMPLIFIED
    states = _states(model, writing, seed)
    decoder.final_layer_norm.weight[0] /= states[:, 0].mean()
    states[:, 0] /= states[:, 0].mean()
    logits = states @ embedding.T * writing.model.width**-0.5  # as tied T5s scale them

    def top_mass(scale: float) -> float:
        return float((logits * scale).softmax(-1).topk(min(TOP, writing.vocabulary // 8)).values.sum(-1).mean())

    def ends(bias: float) -> float:
        biased = logits * scale
        biased[:, EOS] += bias * states[:, 0]
        return float(biased.softmax(-1)[:, EOS].mean())

    scale = _solve(top_mass, MASS, 0.0, 10.0 / float(logits.std()))
    bias = _solve(ends, 1 / writing.mean_length, -50.0, 50.0)
    decoder.final_layer_norm.weight *= scale
    embedding[EOS, 0] += bias / scale * writing.model.width**0.5
    return model


def _states(model: T5ForConditionalGeneration, writing: Writing, seed: int) -> Tensor:
    """(N, D) what the decoder gives after random prefixes."""
    batch = batch_of(writing, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    prefixes = torch.randint(FIRST_WORD, writing.vocabulary, (writing.rows, 16), generator=generator)
    output = model(batch.input_ids, batch.attention_mask, decoder_input_ids=prefixes, output_hidden_states=True)
    return output.decoder_hidden_states[-1].flatten(0, 1)


def _solve(rising: Callable[[float], float], goal: float, low: float, high: float) -> float:
    """Where a rising function reaches its goal, by bisection."""
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < goal else (low, middle)
    return high
