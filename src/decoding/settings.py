"""The eight generation types of the paper (KD4Gen, Calderon et al., ACL 2023) as decoding settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from src.decoding.diverse_beams import diverse_beam_search
from src.decoding.nucleus import Nucleus

TOP_P = 0.95
SAMPLING_TEMPERATURES = {"sampling": 1.0, "sampling_low": 0.75, "sampling_high": 1.5}
DEFAULT_NUCLEUS: Mapping[str, Any] = MappingProxyType({})
LENGTH_PENALTIES = {"beam_search": None, "beam_search_short": 0.4, "beam_search_long": 2.0}  # None: the model's own


@dataclass(frozen=True)
class Decoding:
    """How to generate: greedily (num_beams 1), with beams, or by sampling from a nucleus.

    loop: replaces the beam search of `generate` (its `custom_generate`).
    """

    max_new_tokens: int
    targets_per_input: int = 1
    num_beams: int = 1
    nucleus: Nucleus | None = None
    length_penalty: float | None = None
    loop: Callable | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `generate`."""
        arguments: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_return_sequences": self.targets_per_input,
            "num_beams": self.num_beams,
            "do_sample": self.nucleus is not None,
            "custom_generate": self.loop,
        }
        if self.num_beams > 1 and self.length_penalty is not None:
            arguments["length_penalty"] = self.length_penalty
        if self.nucleus is not None:
            nucleus = self.nucleus
            arguments |= {"top_p": nucleus.top_p, "top_k": nucleus.top_k, "temperature": nucleus.temperature}
        return arguments


def decoding_of(
    generation_type: str,
    *,
    num_beams: int,
    targets_per_input: int,
    max_new_tokens: int,
    nucleus: Mapping[str, Any] = DEFAULT_NUCLEUS,
) -> Decoding:
    """The settings of a --generation_type. Sampling uses top-p 0.95, no top-k, and no beams.

    nucleus: top_p, top_k and temperature for a type that samples; None or missing: the type's own value.
    """
    plain = Decoding(max_new_tokens, targets_per_input, num_beams)
    given = {name: value for name, value in nucleus.items() if value is not None}
    if generation_type in SAMPLING_TEMPERATURES:
        usual = Nucleus(TOP_P, SAMPLING_TEMPERATURES[generation_type])
        return replace(plain, num_beams=1, nucleus=replace(usual, **given))
    if generation_type == "sampling_beam_search":
        return replace(plain, nucleus=replace(Nucleus(TOP_P), **given))
    if generation_type == "diverse_beam_search":
        return replace(plain, loop=diverse_beam_search(num_beams // 2, penalty=0.1))
    return replace(plain, length_penalty=LENGTH_PENALTIES[generation_type])
