"""The bookkeeping of beam search, as `generate` defines it: which beams go on, what is found, and when to stop.

Shapes: n inputs, k beams per input, C candidates per input, L the largest number of new tokens.
"""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from src.decoding.best_tokens import Candidates

IMPOSSIBLE = -1e9  # the score of what must not be chosen; added, as in `generate`, so that equal scores have its order


@dataclass(frozen=True)
class BeamSettings:
    """How to search. A target's score is its log-probability / length ** length_penalty.

    early_stopping decides when an input is settled: True: it has k targets; False: its best beam, at its present
    length, is no better than its worst target; "never": its best beam cannot become better.
    """

    k: int
    returned: int
    max_new_tokens: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False


@dataclass
class Hypotheses:
    """Of each input (n,), by its number: its beams, best first, and what it has found, best first.

    tokens (n, k, L), scores (n, k): of the beams. found, found_scores, found_lengths: of what was found; is_target
    (n, k): whether it has ended; otherwise it only fills the place.
    """

    inputs: Tensor
    tokens: Tensor
    scores: Tensor
    found: Tensor
    found_scores: Tensor
    found_lengths: Tensor
    is_target: Tensor

    @classmethod
    def of(cls, n_inputs: int, settings: BeamSettings, fill: int, device: torch.device) -> "Hypotheses":
        """Before the first token: only the first beam of an input can go on, because all are equal."""
        shape = (n_inputs, settings.k)
        tokens = torch.full((*shape, settings.max_new_tokens), fill, device=device)
        scores = torch.full(shape, IMPOSSIBLE, device=device)
        beams = scores.clone()
        beams[:, 0] = 0.0
        lengths = torch.zeros(shape, dtype=torch.long, device=device)
        return cls(torch.arange(n_inputs, device=device), tokens, beams, tokens, scores, lengths, lengths.bool())

    def some(self, chosen: Tensor) -> "Hypotheses":
        """Of the inputs at these places (m,) only."""
        return replace(self, **{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def put(self, other: "Hypotheses") -> None:
        """Overwrite what was found for the inputs of another."""
        for name in ("found", "found_scores", "found_lengths"):
            getattr(self, name)[other.inputs] = getattr(other, name)

    def advance(self, best: Candidates, ended: Tensor, step: int, settings: BeamSettings) -> Tensor:
        """Write token number `step`; return the beams (n, k) that the new beams go on from.

        ended (n, C): whether a candidate ends here.
        """
        k, of_input = settings.k, torch.arange(len(self.inputs), device=ended.device)[:, None]
        tokens = self.tokens[of_input, best.beams]
        tokens[:, :, step] = best.tokens

        is_target = ended.clone()
        is_target[:, k:] = False  # only a candidate that would have stayed in the beam may end
        scores = best.scores / (step + 1) ** settings.length_penalty + (~is_target) * IMPOSSIBLE
        lengths = torch.full_like(best.tokens, step + 1)
        keep = torch.cat([self.found_scores, scores], dim=1).topk(k).indices
        self.found, self.found_scores, self.found_lengths, self.is_target = (
            torch.cat(pair, dim=1)[of_input, keep]
            for pair in (
                (self.found, tokens),
                (self.found_scores, scores),
                (self.found_lengths, lengths),
                (self.is_target, is_target),
            )
        )
        scores = best.scores + ended * IMPOSSIBLE
        keep = scores.topk(k).indices
        self.tokens, self.scores = tokens[of_input, keep], scores.gather(1, keep)
        return best.beams.gather(1, keep)

    def settled(self, length: int, settings: BeamSettings) -> Tensor:
        """(n,) whether an input's targets stay as they are when its beams, now of this length, go on."""
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            length = settings.max_new_tokens
        reachable = self.scores[:, :1] / length**settings.length_penalty
        worst = torch.where(self.is_target, self.found_scores.amin(dim=1, keepdim=True), IMPOSSIBLE)
        settled = ~(reachable > worst).any(dim=1)
        return settled | self.is_target.all(dim=1) if settings.early_stopping is True else settled
