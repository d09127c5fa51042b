"""Check a loaded model by test forward passes: logits must not depend on later tokens or on padding.

Shapes: V vocabulary.
"""

from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.config.errors import UserError
from src.models.families import has_family
from src.models.forward import teacher_forced
from src.tokens.batch import Batch, pad_sequences

# Tolerances in float32, relative to the largest logit; with padding, other kernels sum in another order.
SAME_INPUT, WITH_PADDING = 1e-4, 1e-2


@torch.no_grad()
def check_forward_pass(model: PreTrainedModel, place: str) -> None:
    """Raise UserError if a model's logits depend on later tokens or on padding.

    Whatever else it raises means that the model cannot run: a config may have sizes that no earlier check looks at.
    """
    tokens = plain_tokens(model, 4)
    if has_family(model.config):  # tested with this suite, so one pass is enough
        _alone(model, tokens)
        return
    problem = _misreads(model, tokens)
    if problem and _misreads(model, tokens[::-1]):  # a mixture may choose between two experts of nearly equal scores
        raise UserError(f"{place}: model type '{model.config.model_type}' {problem}")


def _misreads(model: PreTrainedModel, tokens: list[int]) -> str | None:
    """What is wrong with the logits after the first two of four tokens, or None. Not compared in half precision."""
    alone, in_batch = _alone(model, tokens), teacher_forced(model, two_rows(model, tokens)).logits.logits[2]
    if model.dtype != torch.float32:
        return None
    if not _agree(alone, _alone(model, [*tokens[:2], *tokens[:2]]), SAME_INPUT):
        return (
            "also reads the tokens that follow, so it cannot learn to write them; if its config.json has is_decoder or "
            "causal, set it to true, and the model reads from left to right"
        )
    if not _agree(alone, in_batch, WITH_PADDING):
        return "gives other logits for a text in a batch (with padding, positions from 0) than for the text alone"
    return None


def plain_tokens(model: PreTrainedModel, n: int) -> list[int]:
    """`n` token ids from the middle of the vocabulary, without special tokens."""
    ids, size = model.generation_config, model.config.get_text_config().vocab_size
    ends = ids.eos_token_id if isinstance(ids.eos_token_id, list) else [ids.eos_token_id]
    special = (ids.pad_token_id, ids.bos_token_id, *ends)
    tokens = list(islice((token for token in range(size // 2, size) if token not in special), n))
    return [*tokens, *[0] * n][:n]


def _alone(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """(V,) logits for the first label of the second row of `two_rows`, without a batch and without padding."""
    first, second, *rest = tokens
    if not model.config.is_encoder_decoder:
        return model(input_ids=torch.tensor([tokens], device=model.device), use_cache=False).logits[0, 1]
    written = torch.tensor([[model.config.decoder_start_token_id, *rest]], device=model.device)
    read = torch.tensor([[first, second]], device=model.device)
    return model(input_ids=read, decoder_input_ids=written, use_cache=False).logits[0, 0]


def two_rows(model: PreTrainedModel, tokens: list[int]) -> Batch:
    """A batch of two rows; the input of the second is the first two tokens and padding, its labels are the others."""
    first, second, *rest = tokens
    pad, left = model.generation_config.pad_token_id or 0, not model.config.is_encoder_decoder
    rows = [torch.tensor([second, first, *rest]).numpy(), torch.tensor([first, second]).numpy()]
    input_ids, mask = pad_sequences(rows, pad, on_the_left=left)
    return Batch(input_ids, mask, torch.tensor([rest, rest[::-1]]), (0, 1)).to(model.device)


def _agree(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Whether logits are close. NaN counts as close: another check reports it."""
    return not bool((ours - theirs).abs().max() > tolerance * ours.abs().max())
