"""Tokens per second of three kinds of updates: sorted by length, random, and random in passes of similar length.

The updates use the models and lengths of a row of `make bench` and take turns. "sorted": rows are sorted by length in
pools of 50 updates, which avoids padding, but an update is no random sample. "whole": random updates, each in one pass.
"cut": random updates as the suite computes them, in several passes over rows of similar length. Ratios are medians of
tokens per second over the turns.
"""

import argparse
import random
import sys
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench import chosen_rows, real_lengths  # noqa: E402 (needs the path above)

POOL = 50  # updates
NEVER = 10**18  # launch cost so high that an update is never split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", default="kd-t5", help="a training row of bench.py [kd-t5]")
    parser.add_argument("--data", required=True, help="dataset file whose lengths are used")
    parser.add_argument("--turns", type=int, default=15, help="updates per kind [15]")
    parser.add_argument("--threads", type=int, default=2, help="threads [2]")
    parser.add_argument("--launch", type=int, nargs="*", default=[], help="other values of CPU_LAUNCH to compare")
    args = parser.parse_args()

    import numpy as np
    import torch

    from benchmarks.speed.learning import updater
    from benchmarks.speed.models import batch_of
    from src.models import forward
    from src.tokens.order import chunks, epoch_order

    torch.set_num_threads(args.threads)
    [row] = chosen_rows([args.row])
    pairs = np.array(real_lengths(args.data, POOL * row.work.rows))
    pairs = np.resize(pairs, (POOL * row.work.rows, 2)).clip(2, (row.work.inputs.limit, row.work.labels.limit))
    update = updater(row.work)
    by_length = epoch_order(len(pairs), seed=0, epoch=0)
    by_length = by_length[np.argsort(pairs.sum(axis=1)[by_length], kind="stable")]
    pooled = list(chunks(by_length, row.work.rows))
    random.Random(0).shuffle(pooled)
    shuffled = list(chunks(epoch_order(len(pairs), seed=1, epoch=0), row.work.rows))
    usual = forward.CPU_LAUNCH
    kinds = {"sorted": (pooled, NEVER), "whole": (shuffled, NEVER), "cut": (shuffled, usual)}
    kinds |= {f"cut {n}": (shuffled, n) for n in args.launch}
    rates: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(-1, args.turns):
        for name, (updates, forward.CPU_LAUNCH) in kinds.items():
            rows = updates[turn]
            batch = batch_of(row.work, pairs[rows[np.argsort(pairs.sum(axis=1)[rows], kind="stable")]])
            began = time.perf_counter()
            tokens = update(batch)
            if turn >= 0:
                rates[name].append(tokens / (time.perf_counter() - began))
    print(f"{args.row}, {args.threads} threads, {args.turns} turns")
    for name, values in rates.items():
        ratio = median(ours / theirs for ours, theirs in zip(values, rates["sorted"], strict=True))
        print(f"{name:<10} {median(values):7.0f} tokens/s  {ratio:.3f} of sorted")


if __name__ == "__main__":
    main()
