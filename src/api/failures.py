"""Count the answers of an API file that failed, with the reason and the first places of each."""

import logging
from collections import Counter
from dataclasses import dataclass, field

from src.api.logprobs import lacks_logprobs
from src.api.responses import Completion
from src.config.errors import UserError

logger = logging.getLogger(__name__)

NO_PREDICTION, NO_LOGPROBS = "no prediction", "no log-probabilities"  # reasons beside those of `Completion.failure`
FIRST_NAMED, REASONS_NAMED = 3, 5  # places of each reason, and reasons, in a message


@dataclass
class Answers:
    """Answers of an API file. counted, failed: by split; places: of those that failed, by reason."""

    counted: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=dict)

    def is_usable(self, completion: Completion, split: str, *, needs_logprobs: bool) -> bool:
        """Count an answer; whether there is something to learn from it."""
        reason = completion.failure
        if reason is None and needs_logprobs and lacks_logprobs(completion):
            reason = NO_LOGPROBS
        self.counted[split] += 1
        if reason is not None:
            self.failed[split] += 1
            self.places.setdefault(reason, []).append(completion.place)
        return reason is None

    def check(self, path: str, max_share: float) -> None:
        """Warn of answers that failed. Raises UserError if more than `max_share` of all failed, or all of a split."""
        n_failed, n_answers = self.failed.total(), self.counted.total()
        if not n_failed:
            return
        reasons = self._describe(path)
        if n_failed > max_share * n_answers:
            raise UserError(
                f"{path}: {n_failed} of {n_answers} answers failed, more than --max_failed_share {max_share:g}: "
                f"{reasons}; ask for them again, with log-probabilities"
            )
        for split, count in self.counted.items():
            if count == self.failed[split]:
                raise UserError(
                    f"{path}: split '{split}': all of its {count} answers failed: {reasons}; ask for them again, or "
                    "leave the split out"
                )
        logger.warning("%s: %d of %d answers failed and are left out: %s", path, n_failed, n_answers, reasons)

    def _describe(self, path: str) -> str:
        """The reasons, the most frequent first, each with its first places."""
        parts = []
        for reason, places in sorted(self.places.items(), key=lambda item: -len(item[1]))[:REASONS_NAMED]:
            first = "; ".join(place.removeprefix(f"{path}: ") for place in places[:FIRST_NAMED])
            parts.append(f"{len(places)} {reason} ({first}{'; …' if len(places) > FIRST_NAMED else ''})")
        return ", ".join(parts) + (", …" if len(self.places) > REASONS_NAMED else "")
