"""Try a model before a run: the maximum lengths, a training pass, and a few generated tokens."""

import warnings
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from src.config.console import say
from src.config.flags.shared import SharedArguments
from src.decoding.generate import write_tokens
from src.decoding.settings import Decoding, decoding_of
from src.models.families import knows_layers
from src.models.forward import teacher_forced
from src.models.library_errors import in_one_line, quiet
from src.models.positions import beyond_positions
from src.models.trial import plain_tokens, two_rows
from src.tokens.batch import Batch

N_NEW = 3  # tokens that are written to see whether a model can


def try_out(model: PreTrainedModel, name: str, flags: SharedArguments, decoding: Decoding | None = None) -> None:
    """Raise UserError if a loaded model cannot be trained, or cannot generate, as the flags ask.

    decoding: None for that of an evaluation.
    """
    _try_lengths(model, name, flags)
    if not knows_layers(model.config):
        evaluating = decoding_of("beam_search", num_beams=flags.num_beams, targets_per_input=1, max_new_tokens=N_NEW)
        _try_writing(model, name, decoding or evaluating)


@torch.no_grad()
def _try_lengths(model: PreTrainedModel, name: str, flags: SharedArguments) -> None:
    """Refuse lengths beyond a table of learned positions; warn about those a rotary model was not trained for."""
    beyond = beyond_positions(model.config, flags)
    if not beyond:
        return
    what, length, limit = beyond[0]
    n_labels = flags.max_labels_length + (not model.config.is_encoder_decoder)  # of which the last is not read
    [token] = plain_tokens(model, 1)
    read, labels = (torch.full((1, n), token) for n in (flags.max_input_length, n_labels))
    with in_one_line(what, f"{length} tokens, but {name} has positions for {limit}"):
        teacher_forced(model, Batch(read, torch.ones_like(read), labels, (0,)))
    say(f"warning: {what}: {length} tokens, but {name} was made for {limit} and may do badly beyond")


def _try_writing(model: PreTrainedModel, name: str, decoding: Decoding) -> None:
    """A pass as in training, and a few tokens by the loop that evaluates or generates."""
    batch, is_training = two_rows(model, plain_tokens(model, 4)), model.training
    kind = f"model type '{model.config.model_type}'"
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"), quiet():
        with in_one_line(name, f"{kind} cannot be trained here"):
            teacher_forced(model.train(), batch)
        with in_one_line(name, f"{kind} cannot write {_means(decoding)}"):
            write_tokens(model.eval(), batch, replace(decoding, max_new_tokens=N_NEW))
    model.train(is_training)


def _means(decoding: Decoding) -> str:
    return f"by {decoding.num_beams} beams" if decoding.num_beams > 1 else "token by token"
