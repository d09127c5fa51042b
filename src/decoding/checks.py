"""Check before a run that a model computes and generates at the lengths and settings of the flags."""

import warnings
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from src.config.console import say
from src.config.flags.shared import SharedArguments
from src.decoding.generate import write_tokens
from src.decoding.settings import Decoding, decoding_of
from src.models.checks_before_loading import beyond_positions
from src.models.families import has_family
from src.models.forward import teacher_forced
from src.models.forward_check import plain_tokens, two_rows
from src.models.library_errors import in_one_line, quiet
from src.tokens.batch import Batch

N_NEW = 3  # tokens that a check generates


def check_decoding(model: PreTrainedModel, name: str, flags: SharedArguments, decoding: Decoding | None = None) -> None:
    """Raise UserError if a loaded model cannot be trained, or cannot generate, with the flags' lengths and settings.

    decoding: None for an evaluation's. Only a model type without an entry in `models/families.py` is run.
    """
    _check_lengths(model, name, flags)
    if not has_family(model.config):
        evaluating = decoding_of("beam_search", num_beams=flags.num_beams, targets_per_input=1, max_new_tokens=N_NEW)
        _check_generation(model, name, decoding or evaluating)


@torch.no_grad()
def _check_lengths(model: PreTrainedModel, name: str, flags: SharedArguments) -> None:
    """Refuse lengths beyond a table of learned positions; warn of lengths beyond a rotary model's training."""
    beyond = beyond_positions(model.config, flags.max_input_length, flags.max_labels_length)
    if not beyond:
        return
    what, length, limit = beyond[0]
    n_labels = flags.max_labels_length + (not model.config.is_encoder_decoder)  # decoder-only: the last one is not read
    [token] = plain_tokens(model, 1)
    read, labels = (torch.full((1, n), token) for n in (flags.max_input_length, n_labels))
    with in_one_line(what, f"{length} tokens, but {name} has positions for {limit}"):
        teacher_forced(model, Batch(read, torch.ones_like(read), labels, (0,)).to(model.device))
    say(f"warning: {what}: {length} tokens, but {name} was trained on at most {limit}; quality may drop beyond")


def _check_generation(model: PreTrainedModel, name: str, decoding: Decoding) -> None:
    """Run one training pass, and generate a few tokens."""
    batch, is_training = two_rows(model, plain_tokens(model, 4)), model.training
    kind = f"model type '{model.config.model_type}'"
    means = f"with {decoding.num_beams} beams" if decoding.num_beams > 1 else "token by token"
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"), quiet():
        with in_one_line(name, f"{kind} cannot be trained here"):
            teacher_forced(model.train(), batch)
        with in_one_line(name, f"{kind} cannot generate {means}"):
            write_tokens(model.eval(), batch, replace(decoding, max_new_tokens=N_NEW))
    model.train(is_training)
