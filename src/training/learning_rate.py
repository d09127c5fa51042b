"""The learning rate of a run: a linear warm-up, then one of transformers' schedules."""

from dataclasses import dataclass
from math import ceil

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from src.config.console import say
from src.config.flags.shared import TrainingArguments
from src.training import rhythm

COURSES = {  # of --lr_scheduler_type, after the warm-up
    "linear": "falls to 0 at update {}",
    "cosine": "falls along a cosine to 0 at update {}",
    "constant": "stays the same",
    "constant_with_warmup": "then stays the same",
    "inverse_sqrt": "then falls with the inverse square root of the updates",
}


@dataclass(frozen=True)
class LearningRate:
    """How the learning rate changes from update to update.

    kind: as --lr_scheduler_type names it. updates: those of all nominal epochs, over which the rate falls. warmup: the
    updates over which it rises from 0 first.
    """

    kind: str
    updates: int
    warmup: int

    def schedule(self, optimizer: Optimizer) -> LambdaLR:
        schedule: LambdaLR = get_scheduler(self.kind, optimizer, self.warmup, self.updates)
        return schedule

    def __str__(self) -> str:
        rise = f"warm-up over {self.warmup:,} update{'s' * (self.warmup != 1)}" if self.warmup else "no warm-up"
        return f"learning rate: {rise}, {COURSES[self.kind].format(f'{self.updates:,}')}"


def learning_rate_of(config: TrainingArguments, updates: int, *, from_checkpoint: bool) -> LearningRate:
    """The learning rate that the flags ask for. Warns if the warm-up is longer than the run.

    updates: the nominal number. from_checkpoint: the run starts from trained weights, by default without a warm-up.
    """
    kind, asked = config.lr_scheduler_type, config.warmup_steps
    if asked is None:
        warmup = rhythm.warmup_updates(updates, from_checkpoint=from_checkpoint or kind == "constant")
    elif asked >= 1:
        warmup = int(asked)
    else:
        warmup = ceil(round(asked * updates, 6))  # 0.07 * 100 is 7.000000000000001
    if warmup > updates > 0:
        say(f"warning: --warmup_steps {warmup}: the run has only {updates:,} updates and never reaches --learning_rate")
    return LearningRate(kind, updates, warmup)
