"""Check that a loaded model can be trained to generate: it must not see later tokens, and must ignore padding.

Shapes: V vocabulary.
"""

from itertools import islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from src.config.errors import UserError
from src.models.families import knows_layers
from src.models.forward import teacher_forced
from src.tokens.batch import Batch
from src.tokens.collate import pad_sequences

SAME, ALIKE = 1e-4, 1e-2  # of the largest logit, in float32; with padding other kernels sum in another order
N_NEW = 3  # tokens that are written to see whether a model can


@torch.no_grad()
def check_states(model: PreTrainedModel, place: str) -> None:
    """Raise UserError if a model's logits depend on later tokens or on padding.

    What else it raises comes of sizes in a config that no layer can have: some are looked at by nobody before.
    """
    tokens = plain_tokens(model, 4)
    if knows_layers(model.config):  # types of families.py are known to read and write, and need not be compared
        _alone(model, tokens)
        return
    problem = _misreads(model, tokens)
    if problem and _misreads(model, tokens[::-1]):  # once might be two experts of nearly one score
        raise UserError(f"{place}: model type '{model.config.model_type}' {problem}")


def _misreads(model: PreTrainedModel, tokens: list[int]) -> str | None:
    """What is wrong with the logits behind the first two of four tokens; None also in formats that round much."""
    alone, in_batch = _alone(model, tokens), teacher_forced(model, two_rows(model, tokens)).scores.logits[2]
    if model.dtype != torch.float32:
        return None
    if not _agree(alone, _alone(model, [*tokens[:2], *tokens[:2]]), SAME):
        return (
            "reads the tokens that follow, too, and so cannot learn to write them; where its config.json has "
            "is_decoder or causal, true makes it read from left to right"
        )
    if not _agree(alone, in_batch, ALIKE):
        return "computes something else of a text in a batch (padding, positions from 0) than of it alone"
    return None


def plain_tokens(model: PreTrainedModel, n: int) -> list[int]:
    """Some tokens from the middle of the vocabulary, none of them special."""
    ids, size = model.generation_config, model.config.get_text_config().vocab_size
    ends = ids.eos_token_id if isinstance(ids.eos_token_id, list) else [ids.eos_token_id]
    special = (ids.pad_token_id, ids.bos_token_id, *ends)
    tokens = list(islice((token for token in range(size // 2, size) if token not in special), n))
    return [*tokens, *[0] * n][:n]


def _alone(model: PreTrainedModel, tokens: list[int]) -> Tensor:
    """(V,) logits for the first label of the second row of `two_rows`, as the model computes them by itself."""
    first, second, *rest = tokens
    if not model.config.is_encoder_decoder:
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, 1]
    written = torch.tensor([[model.config.decoder_start_token_id, *rest]])
    return model(input_ids=torch.tensor([[first, second]]), decoder_input_ids=written, use_cache=False).logits[0, 0]


def two_rows(model: PreTrainedModel, tokens: list[int]) -> Batch:
    """Two rows as batches have them: the second reads two tokens beside padding, and has the others as labels."""
    first, second, *rest = tokens
    pad, left = model.generation_config.pad_token_id or 0, not model.config.is_encoder_decoder
    rows = [torch.tensor([second, first, *rest]).numpy(), torch.tensor([first, second]).numpy()]
    input_ids, mask = pad_sequences(rows, pad, on_the_left=left)
    return Batch(input_ids, mask, torch.tensor([rest, rest[::-1]]), (0, 1))


def _agree(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """Whether logits are close. NaN counts as close: it is reported elsewhere."""
    return not bool((ours - theirs).abs().max() > tolerance * ours.abs().max())
