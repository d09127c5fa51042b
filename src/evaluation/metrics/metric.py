"""What a metric is: names of scores, a function, a definition, and what it needs on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec


@dataclass(frozen=True)
class Metric:
    """A way to score texts.

    compute: (predictions, a list of references for each) → one number for each of `score_names`, 0 to 100.
    definition: what exactly is computed; a function if it depends on the metric's options, as `compute` may.
    packages: the modules that it imports. missing: a function that returns what it lacks besides these
    and how to get it, or None. final_only: computed in the final test alone.
    """

    name: str
    score_names: tuple[str, ...]
    compute: Callable[..., dict[str, float]]
    definition: str | Callable[..., str]
    packages: tuple[str, ...] = ()
    missing: Callable[[], str | None] = lambda: None
    final_only: bool = False

    def why_unavailable(self) -> str | None:
        """One phrase with what is missing here and how to get it; None if the metric works. Imports no package."""
        absent = [module.replace("_", "-") for module in self.packages if find_spec(module) is None]
        if absent:
            return f"package {' and '.join(absent)} is not installed (pip install {' '.join(absent)})"
        return self.missing()
