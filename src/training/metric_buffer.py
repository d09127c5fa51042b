"""Sum losses without waiting for the accelerator at every step."""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from src.config.errors import UserError

TOTAL_LOSS, GRADIENT_NORM, SKIPPED = "loss", "gradient_norm", "skipped"


@dataclass(frozen=True)
class _Entry:
    """Values being copied from the device: `there` fires when they have arrived, `place` says where they are from."""

    names: tuple[str, ...]
    values: Tensor
    there: torch.Event | None
    place: str
    checked: str | None


class MetricBuffer:
    """Sums losses by name. On a GPU recorded values are read later, so that the host does not wait for the device.

    last_good_checkpoint: a sentence that ends the error for a value that is not finite.
    """

    def __init__(self, device: torch.device, last_good_checkpoint: Callable[[], str]) -> None:
        self._event = None if device.type in ("cpu", "mps") else lambda: torch.Event(device)
        self._last_good_checkpoint = last_good_checkpoint
        self._entries: deque[_Entry] = deque()

    def record(self, values: Mapping[str, Tensor], place: str, *, checked: str | None = TOTAL_LOSS) -> None:
        """Record scalars (without gradient) of a micro-batch or an update. checked: the name that must be finite.

        If it is None, values that are not finite are left out of the sums (in fp16 the scaler skips such an update).
        """
        stacked = torch.stack([value.float() for value in values.values()]).to("cpu", non_blocking=True)
        there = None
        if self._event is not None:
            there = self._event()
            there.record()
        self._entries.append(_Entry(tuple(values), stacked, there, place, checked))

    def add_to(self, sums: dict[str, float], *, leave: int = 0) -> None:
        """Add recorded values to `sums`; on a GPU the latest `leave` records stay for the next call.

        Raises UserError for a checked value that is not finite, with its place and the values recorded beside it.
        """
        while len(self._entries) > (0 if self._event is None else leave):
            entry = self._entries.popleft()
            if entry.there is not None:
                entry.there.synchronize()
            values = dict(zip(entry.names, entry.values.tolist(), strict=True))
            if entry.checked is not None and not isfinite(values[entry.checked]):
                others = "".join(f", {name} {value:.4g}" for name, value in values.items() if name != entry.checked)
                what = f"non-finite {entry.checked.replace('_', ' ')} at {entry.place}{others}"
                raise UserError(f"{what}; {self._last_good_checkpoint()}")
            for name, value in values.items():
                if entry.checked is not None or isfinite(value):
                    sums[name] = sums.get(name, 0.0) + value
