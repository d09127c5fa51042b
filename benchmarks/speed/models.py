"""Random models and batches of a row's sizes, equal in every process.

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
from src.models.families import FAMILY_OF_TYPE
from src.models.new_models import ModelSizes, build_from_scratch
from src.tokens.batch import Batch, pad_sequences

PAD, EOS, FIRST_WORD = 0, 1, 3
TOP, MASS = 256, 0.9999  # in a trained model with 32,128 tokens, the 256 most likely hold 99.99 % on average
AMPLIFIED = 100.0  # scale of the last layer's output; it must outweigh the tied embedding of the previous token
Pairs = Sequence[tuple[int, int]]  # tokens of input and target


def build(family: str, vocabulary: int, shape: Shape, *, dropout: float, seed: int) -> PreTrainedModel:
    """A model with random weights, large enough for the lengths of every row."""
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
    """Random tokens in sequences of the row's lengths, or of the lengths `pairs` if the row's lengths vary."""
    rng = np.random.default_rng(seed)
    inputs = _lengths(work.inputs, [pair[0] for pair in pairs], work.rows, rng)
    is_encoder_decoder = isinstance(work, Writing) or FAMILY_OF_TYPE[work.family].is_encoder_decoder

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
    """A T5 with random weights that behaves like a trained one: peaked distributions and targets of varying length.

    A random T5 with tied embeddings copies the previous token, so the last layer's output is scaled up to outweigh the
    embedding. The first dimension of the decoder states is constant, which turns the weight of EOS there into a bias.
    Two values are then tuned on states of random prefixes: the weight of the final norm, until the TOP most likely
    tokens hold MASS on average; and the EOS bias, until the probability of EOS gives the mean length. This probability
    varies by state, so lengths vary too.
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
    logits = states @ embedding.T * writing.model.width**-0.5  # the scale of a T5 with tied embeddings

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
    """Decoder states (N, D) after random prefixes."""
    batch = batch_of(writing, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    prefixes = torch.randint(FIRST_WORD, writing.vocabulary, (writing.rows, 16), generator=generator)
    output = model(batch.input_ids, batch.attention_mask, decoder_input_ids=prefixes, output_hidden_states=True)
    return output.decoder_hidden_states[-1].flatten(0, 1)


def _solve(rising: Callable[[float], float], goal: float, low: float, high: float) -> float:
    """The argument at which a rising function reaches its goal, by bisection."""
    for _ in range(16):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < goal else (low, middle)
    return high
