"""A million tiny rows in every format: time and memory of reading, checking and preparing grow linearly."""

import json
import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

import prepare_datasets_main
from src.data.formats import read_datasets
from src.data.schema import check_trainable
from tests.tiny_runs import argv, read

N = 1_000_000
SECONDS, MEBIBYTES = 60, 3_000  # it took 2 to 14 s, and 140 to 960 MiB beside libraries, where this was written

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("million")
    texts, targets = ([f"{letter}{i}" for i in range(N)] for letter in "tr")
    (folder / "data.json").write_text(json.dumps({"train": {"text": texts, "target": targets}}))
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(f'{{"text": "t{i}", "target": "r{i}"}}\n' for i in range(N))
    with (folder / "rows.csv").open("w") as file:
        file.writelines(["text,target\n", *(f"t{i},r{i}\n" for i in range(N))])
    pyarrow.parquet.write_table(pa.table({"text": texts, "target": targets}), folder / "rows.parquet")
    (folder / "parts" / "train").mkdir(parents=True)
    for part in range(1_000):
        rows = range(part * N // 1_000, (part + 1) * N // 1_000)
        lines = "".join(f'{{"text": "t{i}", "target": "r{i}"}}\n' for i in rows)
        (folder / "parts" / "train" / f"{part:04}.jsonl").write_text(lines)
    generated = {"text": [f"t{i // 2}" for i in range(2 * N)], "generated": [f"g{i}" for i in range(2 * N)]}
    (folder / "generated.json").write_text(json.dumps({"train": generated}))
    return folder


def within_bounds(work: Callable[[], object]) -> None:
    """In a process of its own, whose memory is its own."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  (the fork must not go on as another pytest)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status, used = os.wait4(child, 0)
    assert status == 0
    assert time.monotonic() - started < SECONDS
    assert used.ru_maxrss / 1024 < MEBIBYTES


@pytest.mark.parametrize("name", ["data.json", "rows.jsonl", "rows.csv", "rows.parquet", "parts"])
def test_reading(data, name):
    def work() -> None:
        rows = read_datasets(data / name)
        check_trainable(rows, name)
        assert len(rows["train"]["text"]) == N and rows["train"]["target"][-1] == f"r{N - 1}"

    within_bounds(work)


@pytest.mark.parametrize("mode", ["original", "generations"])
def test_preparing(data, tmp_path, mode):
    flags = {
        "original": {"dataset_name": "", "dataset_path": data / "data.json"},
        "generations": {
            "original_dataset_path": data / "data.json",
            "generation_dataset_path": data / "generated.json",
        },
    }[mode]
    within_bounds(lambda: prepare_datasets_main.main(argv({**flags, "output_dir": tmp_path})))
    made = read(tmp_path / "dataset.json")
    assert {split: len(columns["text"]) for split, columns in made.items()} == (
        {"train": N, "ft": N} if mode == "original" else {"train_0": 2 * N, "train_1": 2 * N}
    )
