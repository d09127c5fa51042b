"""The most likely tokens, with log-probabilities, at each position of written tokens."""

import numpy as np
import torch
from torch import Tensor

from src.api.simulated import IMPOSSIBLE
from src.decoding.generator import TargetGenerator
from src.models.forward import target_labels, target_logits
from src.tokens.batch import Batch


def eos_ids(generator: TargetGenerator) -> set[int]:
    """The tokens with which the model ends a text: one, or several in a list."""
    return set(np.atleast_1d(generator.model.generation_config.eos_token_id).tolist())


@torch.no_grad()
def top_logprobs(model: torch.nn.Module, batch: Batch, known: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """(N, K + 1) token ids and their log-probabilities: the K = `top` most likely, falling, then the label.

    N: the batch's labels. The distribution is the model's own over its whole vocabulary (temperature 1, no nucleus);
    known: (V′,) ids that the tokenizer has; only these are among the K.
    """
    logits = target_logits(model, batch).float()
    labels = target_labels(batch)[:, None]
    total = logits.logsumexp(dim=-1, keepdim=True)
    label_logits = logits.gather(1, labels)
    unknown = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
    unknown[known.to(logits.device)] = False
    best = logits.masked_fill_(unknown, -torch.inf).topk(top, dim=-1)
    logprobs = torch.cat([best.values, label_logits], dim=1) - total
    return torch.cat([best.indices, labels], dim=1), logprobs.clamp_(min=IMPOSSIBLE, max=0)
