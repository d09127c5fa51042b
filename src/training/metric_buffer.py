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
    """Values on their way from the device; `there` tells when they have come, `place` where they are from."""

    names: tuple[str, ...]
    values: Tensor
    there: torch.Event | None
    place: str
    checked: str | None


class MetricBuffer:
    """Sums of losses by name. On an accelerator what is noted is read later, when the work after it is under way."""

    def __init__(self, device: torch.device, where_to_go_back: Callable[[], str]) -> None:
        self._event = None if device.type in ("cpu", "mps") else lambda: torch.Event(device)
        self._where_to_go_back = where_to_go_back
        self._entries: deque[_Entry] = deque()

    def record(self, values: Mapping[str, Tensor], place: str, *, checked: str | None = TOTAL_LOSS) -> None:
        """Note values (scalars without gradient) of a micro-batch or an update; the one `checked` must be finite.

        None: somebody else looks at them (the scaler, which skips an update); those that are not finite do not count.
        """
        stacked = torch.stack([value.float() for value in values.values()]).to("cpu", non_blocking=True)
        there = None
        if self._event is not None:
            there = self._event()
            there.record()
        self._entries.append(_Entry(tuple(values), stacked, there, place, checked))

    def add_to(self, sums: dict[str, float], *, leave: int = 0) -> None:
        """Add what was noted, but for the latest `leave` entries on an accelerator, to `sums`.

        Raises UserError, naming its place and what else was noted there, for a checked value that is not finite.
        """
        while len(self._entries) > (0 if self._event is None else leave):
            entry = self._entries.popleft()
            if entry.there is not None:
                entry.there.synchronize()
            values = dict(zip(entry.names, entry.values.tolist(), strict=True))
            if entry.checked is not None and not isfinite(values[entry.checked]):
                others = "".join(f", {name} {value:.4g}" for name, value in values.items() if name != entry.checked)
                what = f"non-finite {entry.checked.replace('_', ' ')} at {entry.place}{others}"
                raise UserError(f"{what}; {self._where_to_go_back()}")
            for name, value in values.items():
                if entry.checked is not None or isfinite(value):
                    sums[name] = sums.get(name, 0.0) + value
