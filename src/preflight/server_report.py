"""The report of a dry run whose targets a server writes: what the server does, and the time of one request."""

import time

import numpy as np

from src.decoding.durable import DurableGeneration
from src.decoding.server_engine import ServerEngine
from src.preflight.measure import ROWS
from src.preflight.sections import duration, plural
from src.tokens.batch import collate
from src.tokens.tokenized import TokenizedDatasets


def describe_server(engine: ServerEngine) -> list[str]:
    """The model and how it is asked."""
    per_request = "all targets of an input" if engine.takes_n else "one target"
    sent = "token ids" if engine.sends_ids else "text"
    return [
        f"{engine.model} at {engine.client.url}",
        f"prompts are sent as {sent}; a request brings {per_request}",
        f"tokenizer of {len(engine.tokenizer):,} tokens",
    ]


def server_time_lines(generation: DurableGeneration, data: TokenizedDatasets, n_left: int) -> list[str]:
    """The time of an input of middle length, and of all if the server works on one, or on many, in that time."""
    engine, config = generation.generator, generation.config
    assert isinstance(engine, ServerEngine)
    name = next(iter(generation.datasets))
    split, k = data.glimpse(name, ROWS), generation.k_of[name]
    middle = np.argsort(split.input_lengths, kind="stable")[[len(split) // 2]]
    start = time.perf_counter()
    engine.write(collate(engine.preprocessor, split, middle), k).result()
    seconds = time.perf_counter() - start
    n_inputs, at_once = n_left / k, getattr(config, "server_concurrency", 1)
    shortest, longest = (duration(seconds * n_inputs / each) for each in (at_once, 1))
    return [
        f"{plural(k, 'target')} of an input took {seconds:,.3f} s",
        f"between {shortest} (if {at_once} inputs at a time take no longer than one) and {longest}",
    ]
