"""How fast a training is, and the values that its progress bar shows."""

from collections.abc import Callable
from dataclasses import dataclass, field

from src.training.metric_buffer import TOTAL_LOSS
from src.training.update import UPDATES, Updater, Work


@dataclass
class Speed:
    """Rows and tokens per second of an updater since it was last asked. Evaluations do not count."""

    updater: Updater
    former: Work = field(default_factory=Work)

    def take(self) -> dict[str, float]:
        """The speed since the last call; empty if there was no update."""
        done, former = self.updater.work, self.former
        self.former = done
        seconds = done.seconds - former.seconds
        if not seconds:
            return {}
        rows, tokens = done.rows - former.rows, done.tokens - former.tokens
        return {"rows_per_second": rows / seconds, "tokens_per_second": tokens / seconds}


class Readout:
    """The values beside the progress bar: mean loss and rows per second since they were last shown; learning rate."""

    def __init__(self, updater: Updater, learning_rate: Callable[[], float]) -> None:
        self.updater, self.learning_rate, self.speed = updater, learning_rate, Speed(updater, updater.work)
        self.sums = updater.state.losses
        self.loss, self.updates = self._so_far()

    def __call__(self) -> str:
        """What the bar shows. On a GPU it waits for the last update."""
        state = self.updater.state
        self.updater.metrics.add_to(state.losses)
        if self.sums is not state.losses:  # a row of losses was written; the sums began anew
            self.sums, self.loss, self.updates = state.losses, 0.0, 0.0
        loss, updates = self._so_far()
        shown = [f"lr {self.learning_rate():.3g}"]
        if updates > self.updates:
            shown.insert(0, f"loss {(loss - self.loss) / (updates - self.updates):.4g}")
        shown += [f"{speed:.4g} rows/s" for name, speed in self.speed.take().items() if name == "rows_per_second"]
        self.loss, self.updates = loss, updates
        return ", ".join(shown)

    def _so_far(self) -> tuple[float, float]:
        """The sum of losses and the number of updates since the last row of losses."""
        losses = self.updater.state.losses
        return losses.get(TOTAL_LOSS, 0.0), losses.get(UPDATES, 0.0)
