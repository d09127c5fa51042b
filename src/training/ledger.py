"""Losses of micro-batches on their way to the log: an accelerator is not waited for at every step."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from src.config.errors import UserError

LOSS = "loss"


@dataclass(frozen=True)
class _Entry:
    """Values on their way from the device; `there` tells when they have come, `place` where they are from."""

    names: tuple[str, ...]
    values: Tensor
    there: torch.Event | None
    place: str


class Ledger:
    """Sums of losses by name. On an accelerator what is noted is read later, when the work after it is under way."""

    def __init__(self, device: torch.device, where_to_go_back: Callable[[], str]) -> None:
        self._event = None if device.type in ("cpu", "mps") else lambda: torch.Event(device)
        self._where_to_go_back = where_to_go_back
        self._entries: deque[_Entry] = deque()

    def note(self, values: Mapping[str, Tensor], place: str) -> None:
        """Note the values (scalars without gradient) of a micro-batch, "loss" among them."""
        stacked = torch.stack([value.float() for value in values.values()]).to("cpu", non_blocking=True)
        there = None
        if self._event is not None:
            there = self._event()
            there.record()
        self._entries.append(_Entry(tuple(values), stacked, there, place))

    def add_to(self, sums: dict[str, float], *, leave: int = 0) -> None:
        """Add what was noted, but for the latest `leave` entries on an accelerator, to `sums`.

        Raises UserError, naming its place, for a loss that is not finite.
        """
        while len(self._entries) > (0 if self._event is None else leave):
            entry = self._entries.popleft()
            if entry.there is not None:
                entry.there.synchronize()
            for name, value in zip(entry.names, entry.values.tolist(), strict=True):
                if name == LOSS and not isfinite(value):
                    raise UserError(f"non-finite loss at {entry.place}; {self._where_to_go_back()}")
                sums[name] = sums.get(name, 0.0) + value
