"""Compare which layers a pruned student keeps: its test scores at the start and after equal training.

For each way, create_student_main.py keeps --keep layers of --model, and ft_main.py trains the student with the same
flags for each seed. Finished steps are skipped and interrupted ones continue.

Example:
  python benchmarks/pruning.py --model HuggingFaceTB/SmolLM2-135M --keep 10 --dataset datasets/original/e2e.json \
    --out outputs/pruning/smollm2 --train "--epochs 2 --learning_rate 2e-4 --batch_size 8"
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean

from commands import REPOSITORY, Job, run, write_table

WAYS = ("spaced", "first", "last", "ends")
COLUMNS = ("kept", "layers", "NLL at the start", "NLL by seed", "mean", "BLEU by seed", "mean")


def layers_kept(way: str, n_total: int, n_keep: int) -> tuple[int, ...]:
    """Layers of a stack that a way keeps: spread evenly, the first ones, the last ones, or half from each end."""
    from src.models.pruning import spaced_layers

    first = (n_keep + 1) // 2
    return {
        "spaced": spaced_layers(n_total, n_keep),
        "first": tuple(range(n_keep)),
        "last": tuple(range(n_total - n_keep, n_total)),
        "ends": (*range(first), *range(n_total - n_keep + first, n_total)),
    }[way]


def keep_flags(way: str, stacks: dict[str, int], n_keep: int) -> str:
    """The flags of create_student_main.py. `stacks`: encoder and decoder of the model → number of layers."""
    return " ".join(
        f"--keep_{side}_layers {' '.join(map(str, layers_kept(way, n_total, n_keep)))}"
        for side, n_total in stacks.items()
    )


def jobs(args: argparse.Namespace, kept: dict[str, str]) -> Iterator[Job]:
    """Per way: the student, its scores before training, and one run for each seed."""
    common = f"--metric_for_best_model nll --metrics sacrebleu --dataset_path {args.dataset} {args.train}"
    for way in args.ways:
        student = f"{args.out}/{way}"
        new = f"--from_model {args.model} {kept[way]} --output_dir {student}"
        yield Job(f"new {way}", "create_student_main.py", new, way)
        start = f"--model_name {student} --output_dir {student}_start --do_train False {common}"
        yield Job(f"start {way}", "ft_main.py", start, f"{way}_start/eval_scores.csv")
        for seed in args.seeds:
            trained = f"--model_name {student} --output_dir {student}_{seed} --seed {seed} {common}"
            yield Job(f"{way} {seed}", "ft_main.py", trained, f"{way}_{seed}/model")


def table_rows(args: argparse.Namespace, kept: dict[str, str]) -> Iterator[tuple[str, ...]]:
    def scores(folder: str) -> dict[str, float]:
        return json.loads((args.out / folder / "run.json").read_text(encoding="utf-8"))["scores"]

    for way in args.ways:
        runs = [scores(f"{way}_{seed}") for seed in args.seeds]
        nll, bleu = ([each[name] for each in runs] for name in ("nll", "sacrebleu"))
        by_seed = (" ".join(f"{value:.3f}" for value in nll), f"{mean(nll):.3f}")
        by_seed += (" ".join(f"{value:.1f}" for value in bleu), f"{mean(bleu):.1f}")
        yield (
            way,
            kept[way].replace("--keep_", "").replace("_layers", ""),
            f"{scores(f'{way}_start')['nll']:.2f}",
            *by_seed,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder or hub name whose layers are kept")
    parser.add_argument("--keep", type=int, required=True, help="layers to keep of each stack")
    parser.add_argument("--dataset", required=True, help="dataset with train, dev and test")
    parser.add_argument("--train", default="", help="more flags of ft_main.py")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="layers to keep [all four]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="[1 2 3]")
    parser.add_argument("--threads", type=int, default=2, help="[2]")
    parser.add_argument("--out", type=Path, required=True, help="output folder")
    args = parser.parse_args()
    sys.path.insert(0, str(REPOSITORY))
    from src.models.families import layer_counts
    from src.models.loading import load_config

    stacks = {side: n for side, n in layer_counts(load_config(args.model)).items() if n}
    kept = {way: keep_flags(way, stacks, args.keep) for way in args.ways}
    for job in jobs(args, kept):
        run(job, args.out, args.threads)
    write_table([COLUMNS, *table_rows(args, kept)], args.out)


if __name__ == "__main__":
    main()
