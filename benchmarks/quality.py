"""Compare our students with those of the published suite: same data, initial weights and flags, several seeds.

--data is a folder with data.json, t5-teacher, t5-student and published (weights, scores and pseudo-targets of the
published suite). This script scores every model, theirs and ours: greedy BLEU and mean NLL per token on dev and test.
Finished steps are skipped and interrupted ones continue.

--variations changes one setting at a time in the distillation of the published teacher.
"""

import argparse
import csv
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from commands import GENERATED, REPOSITORY, Job, run, tell, write_table

K = 4
LENGTHS = "--task_prompt bart --max_input_length 64 --max_labels_length 64"
TRAIN = (
    f"{LENGTHS} --metrics sacrebleu --num_beams 1 --batch_size 48 --max_gpu_batch_size 48 "
    "--metric_for_best_model sacrebleu --save_checkpoint_every_n_steps 1.0 --test_every_n_epochs 2"
)
DISTIL = f"--experiment_config_key logits_kd --learning_rate 3e-3 --epochs 8 --ft_steps_at_end 2 {TRAIN}"
SAMPLE = (
    f"--split_for_generation unlabeled train --num_return_sequences {K} --generation_type sampling "
    f"--add_original_data True --batch_size 96 {LENGTHS}"
)
PUBLISHED = {"teacher": "t5-teacher", "finetuned": "t5-student", "distilled": "t5-student"}  # model: its folder
WEIGHTS = {"teacher": "teacher", "finetuned": "plain", "distilled": "kd"}  # model: its file in published/
ROAD = ("teacher", "finetuned", "distilled", "distilled_alone")
MODELS = {"distilled_alone": "distilled"}  # our model: the published one it is compared with
SPLITS = ("dev", "test")
COLUMNS = ("model", "seed", *(f"{split} {score}" for split in SPLITS for score in ("BLEU", "NLL")), "minutes")
PHASE_COLUMNS = ("model", "seed", "after", "dev BLEU", "dev NLL", "test BLEU", "test NLL")


@dataclass(frozen=True)
class Variation:
    """One changed setting of a distillation.

    distill: flags of kd_main.py; sample: flags of gen_main.py for our own pseudo-targets (None: the published ones);
    patch: Python code that runs before the script.
    """

    distill: str = ""
    sample: str | None = None
    patch: str = ""


NO_EOS_AT_A_CUT = (
    "from src.tokens.preprocessing import Preprocessor as P; "
    "P._cut_labels = lambda self, ids: ids[: self.max_labels_length]"
)
NO_DECAY_OF_VECTORS = (
    "import torch; plain = torch.optim.AdamW; torch.optim.AdamW = lambda ps, weight_decay, **kw: (lambda ps: plain("
    "[{'params': [p for p in ps if p.ndim > 1], 'weight_decay': weight_decay}, "
    "{'params': [p for p in ps if p.ndim < 2], 'weight_decay': 0.0}], **kw))(list(ps))"
)
VARIATIONS: Mapping[str, Variation] = {
    "as it is": Variation(),
    "pseudo-targets: ours, top-p 0.95": Variation(sample=""),
    "pseudo-targets: ours, top-k 50": Variation(sample="--top_k 50"),
    "pseudo-targets: ours, top-p 1": Variation(sample="--top_p 1"),
    "labels cut to 24 tokens, EOS kept": Variation("--max_labels_length 24"),
    "labels cut to 24 tokens, no EOS": Variation("--max_labels_length 24", patch=NO_EOS_AT_A_CUT),
    "chosen by NLL": Variation("--metric_for_best_model nll --greater_is_better False"),
    "weight decay 0.01": Variation("--weight_decay 0.01"),
    "weight decay 0.01, not on vectors": Variation("--weight_decay 0.01", patch=NO_DECAY_OF_VECTORS),
}


def road(data: Path, out: Path, seed: int) -> Iterator[Job]:
    """The whole pipeline, and the distillation alone with the published teacher and pseudo-targets."""
    teacher, student = data / "t5-teacher", data / "t5-student"
    file = f"--dataset_path {data}/data.json"

    def job(name: str, script: str, flags: str, result: str = "model") -> Job:
        return Job(name, script, f"{flags} --seed {seed} --output_dir {out}/{name}", f"{name}/{result}")

    yield job("teacher", "ft_main.py", f"--model_name {teacher} {file} --learning_rate 2e-3 --epochs 16 {TRAIN}")
    yield job("finetuned", "ft_main.py", f"--model_name {student} {file} --learning_rate 3e-3 --epochs 24 {TRAIN}")
    yield job("sampling", "gen_main.py", f"--model_name {out}/teacher/model {file} {SAMPLE}", GENERATED)
    yield merge(data, out, "sampling")
    models = f"--student_name {student} --teacher_name {out}/teacher/model"
    yield job("distilled", "kd_main.py", f"{DISTIL} {models} --dataset_path {out}/sampling_merged.json")
    yield job("distilled_alone", "kd_main.py", f"{DISTIL} {published_pair(data)} {published_targets(data)}")


def published_pair(data: Path) -> str:
    weights = data / "published" / "teacher.safetensors"
    return f"--student_name {data}/t5-student --teacher_name {data}/t5-teacher --teacher_state_dict_path {weights}"


def published_targets(data: Path) -> str:
    return f"--dataset_path {data}/published/pseudo_targets_merged.json"


def merge(data: Path, out: Path, name: str) -> Job:
    flags = (
        f"--original_dataset_path {data}/data.json --generation_dataset_path {out}/{name}/{GENERATED} "
        f"--n_augmentations_per_example {K} --file_name {name}_merged.json --output_dir {out}"
    )
    return Job(f"{name}_merged", "prepare_datasets_main.py", flags, f"{name}_merged.json")


def variation(name: str, data: Path, out: Path, seed: int) -> Iterator[Job]:
    """The jobs of one variation."""
    chosen, folder = VARIATIONS[name], name_of(name)
    targets = published_targets(data)
    if chosen.sample is not None:
        teacher = f"--model_name {data}/t5-teacher --checkpoint_path {data}/published/teacher.safetensors"
        flags = f"{teacher} --dataset_path {data}/data.json {SAMPLE} {chosen.sample} --seed {seed}"
        yield Job(f"{folder}_targets", "gen_main.py", f"{flags} --output_dir {out}/{folder}_targets",
                  f"{folder}_targets/{GENERATED}")  # fmt: skip
        yield merge(data, out, f"{folder}_targets")
        targets = f"--dataset_path {out}/{folder}_targets_merged.json"
    code = f"{chosen.patch}; import kd_main; kd_main.run_script(kd_main.main)"
    script = f"-c {shlex.quote(code)}" if chosen.patch else "kd_main.py"
    flags = f"{DISTIL} {published_pair(data)} {targets} {chosen.distill} --seed {seed} --output_dir {out}/{folder}"
    yield Job(folder, script, flags, f"{folder}/model")


def name_of(variation: str) -> str:
    """The folder of a variation."""
    return "".join(letter if letter.isalnum() else "_" for letter in variation)


def carry_out(jobs: Iterator[Job], out: Path) -> None:
    """Run jobs one after another on one thread, and record the minutes of each."""
    out.mkdir(parents=True, exist_ok=True)
    for job in jobs:
        if (out / job.result).exists():
            tell(job.name, "already done")
            continue
        started = time.monotonic()
        run(job, out, 1)
        (out / f"{job.name}.minutes").write_text(f"{(time.monotonic() - started) / 60:.2f}", encoding="utf-8")


class Scorer:
    """Compute BLEU and NLL of all models in the same way, on dev and test, and cache them beside the model."""

    def __init__(self, data: Path, test: Path | None, num_beams: int = 1) -> None:
        import torch

        sys.path.insert(0, str(REPOSITORY))
        from src.data.formats import read_datasets
        from src.decoding.settings import decoding_of
        from src.evaluation.evaluate import Evaluator
        from src.models.loading import load_tokenizer
        from src.tokens.preprocessing import Preprocessor
        from src.tokens.tokenized import TokenizedDatasets

        torch.set_num_threads(1)
        datasets = read_datasets(data / "data.json")
        if test is not None:
            datasets = {**datasets, "test": read_datasets(test)["test"]}
        preprocessor = Preprocessor(load_tokenizer(str(data / "t5-student")), True, 64, 64, "bart")
        self.datasets = TokenizedDatasets(datasets, preprocessor)
        decoding = decoding_of("beam_search", num_beams=num_beams, targets_per_input=1, max_new_tokens=64)
        self.evaluator = Evaluator(preprocessor, decoding, ("sacrebleu",), 100)
        self.name = f"scores{'' if test is None else '_' + test.stem}{'' if num_beams == 1 else f'_{num_beams}_beams'}"

    def scores(self, model: Path, weights: Path | None, kept: Path) -> list[float]:
        """BLEU and NLL on dev, then BLEU and NLL on test."""
        from src.models.loading import load_model

        file = kept.with_name(f"{kept.name}.{self.name}.json")
        if not file.exists():
            loaded, scores = load_model(str(model), state_dict_path=weights and str(weights)), []
            for split in SPLITS:
                references = self.datasets.datasets[split]["target"]
                result = self.evaluator.evaluate(loaded, self.datasets.split(split), references)
                scores += [result.scores["sacrebleu"], result.scores["nll"]]
            file.write_text(json.dumps(scores), encoding="utf-8")
        return json.loads(file.read_text(encoding="utf-8"))


def spread(values: list[float], digits: int) -> str:
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}" if len(values) > 1 else f"{values[0]:.{digits}f}"


def summary(name: str, scores: list[list[float]], minutes: list[str] | None = None) -> tuple[str, ...]:
    """A line with means and standard deviations over seeds."""
    columns = zip(*scores, strict=True)
    return (name, "mean ± sd", *(spread(list(column), 2 if i % 2 == 0 else 3) for i, column in enumerate(columns)),
            spread([float(each) for each in minutes], 1) if minutes else "")  # fmt: skip


def line(name: str, seed: str, scores: list[float], minutes: str = "") -> tuple[str, ...]:
    return (name, seed, *(f"{score:.{2 if i % 2 == 0 else 3}f}" for i, score in enumerate(scores)), minutes)


def table(scorer: Scorer, data: Path, out: Path, seeds: list[int]) -> Iterator[tuple[str, ...]]:
    """For each model, the published scores and ours."""
    for name in ROAD:
        theirs = MODELS.get(name, name)
        published = scorer.scores(
            data / PUBLISHED[theirs], data / "published" / f"{WEIGHTS[theirs]}.safetensors", out / f"published_{theirs}"
        )
        yield line(name, "published", published)
        ours, minutes = [], []
        for seed in seeds:
            folder = out / str(seed) / name
            ours.append(scorer.scores(folder / "model", None, folder))
            minutes.append((out / str(seed) / f"{name}.minutes").read_text(encoding="utf-8"))
            yield line(name, str(seed), ours[-1], minutes[-1])
        yield summary(name, ours, minutes)


def phases(out: Path, seeds: list[int], names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Scores of the last epoch of each phase, from eval_scores.csv, whichever checkpoint was chosen."""
    ends = {"teacher": {15: "16 epochs"}, "finetuned": {23: "24 epochs"}}
    for name in names:
        by_end: dict[str, list[list[float]]] = {}
        for seed in seeds:
            with (out / str(seed) / name / "eval_scores.csv").open(encoding="utf-8") as file:
                rows = {(row["split"], int(row["epoch"])): row for row in csv.DictReader(file)}
            for epoch, end in ends.get(name, {7: "8 epochs", 9: "closing"}).items():
                found = [rows[split, epoch] for split in SPLITS]
                scores = [float(row[score]) for row in found for score in ("sacrebleu", "nll")]
                by_end.setdefault(end, []).append(scores)
        for end, scores in by_end.items():
            means = summary(name, scores)
            yield (name, means[1], end, *means[2:6])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of the data, initial weights and published models"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 1, 2], help="seeds [42 1 2]")
    parser.add_argument(
        "--variations",
        nargs="*",
        help="run these variations instead of the pipeline; without a name: all",
        metavar="NAME",
    )
    parser.add_argument("--test", type=Path, help="dataset file whose test split replaces the one of data.json")
    parser.add_argument("--num_beams", type=int, default=1, help="beams used for scoring [1]")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/quality"), help="folder of all outputs [outputs/quality]"
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 2, help="jobs that run in parallel [processors]"
    )
    args = parser.parse_args()
    data, out = args.data.resolve(), args.output_dir.resolve()
    names = None if args.variations is None else (args.variations or list(VARIATIONS))
    with ThreadPoolExecutor(args.workers) as pool:
        if names is None:
            jobs = [(road(data, out / str(seed), seed), out / str(seed)) for seed in args.seeds]
        else:
            jobs = [
                (variation(name, data, out / str(seed), seed), out / str(seed)) for name in names for seed in args.seeds
            ]
        list(pool.map(carry_out, *zip(*jobs, strict=True)))
    scorer = Scorer(data, args.test, args.num_beams)
    if names is None:
        write_table([COLUMNS, *table(scorer, data, out, args.seeds)], out)
        write_table([PHASE_COLUMNS, *phases(out, args.seeds, ROAD)], out / "phases")
        return
    lines = []
    for name in names:
        folders = [out / str(seed) / name_of(name) for seed in args.seeds]
        lines.append(summary(name, [scorer.scores(folder / "model", None, folder) for folder in folders]))
    write_table([COLUMNS, *lines], out / "variations")
    ends = phases(out, args.seeds, tuple(map(name_of, names)))
    write_table([PHASE_COLUMNS, *ends], out / "variations_phases")


if __name__ == "__main__":
    main()
