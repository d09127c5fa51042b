"""--id_column: a row's id stands beside what a script writes for the row, and nowhere without the flag."""

import json

import pytest
from tiny_runs import ft_flags, gen_flags, read

import ft_main
import gen_main
import prepare_datasets_main
import simulate_api_main

UIDS = ["n7", "n3", "n5"]


@pytest.fixture
def table(tmp_path):
    rows = [
        {"uid": uid, "in": text, "out": "a cat"} for uid, text in zip(UIDS, ("A dog.", "A red cat.", "A"), strict=True)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path / "data"


NAMED = {"text_column": "in", "target_column": "out"}
WITH_IDS = {**NAMED, "id_column": "uid"}


@pytest.mark.parametrize("flags", [NAMED, WITH_IDS])
def test_predictions(tiny_models, table, tmp_path, flags):
    ft_main.main(ft_flags(tiny_models["t5"]["student"], table, tmp_path / "out", do_train=False, **flags))
    (evaluation,) = read(tmp_path / "out" / "eval_generations.json").values()
    assert evaluation["references"] == ["a cat"] * 3
    assert evaluation.get("ids") == (UIDS if "id_column" in flags else None)


@pytest.mark.parametrize("original", [True, False])
def test_pseudo_targets(tiny_models, table, tmp_path, original):
    flags = {"num_return_sequences": 2, "generation_type": "sampling", "add_original_data": original, **WITH_IDS}
    path = gen_main.main(gen_flags(tiny_models["t5"]["student"], table, tmp_path / "gen", **flags))
    names = {"text", "target"} if original else {"input_hash"}
    for columns in read(path).values():
        assert columns.keys() == {"id", "generated", "finish_reason", *names}
        assert columns["id"] == [uid for uid in UIDS for _ in range(2)]
    merge = {"original_dataset_path": table, "generation_dataset_path": path, "output_dir": tmp_path, **WITH_IDS}
    merged = read(
        prepare_datasets_main.main([word for name, value in merge.items() for word in (f"--{name}", str(value))])
    )
    assert merged["train_1"]["id"] == UIDS * 2
    assert merged["test"]["id"] == UIDS


def test_completions_of_an_api(tiny_models, table, tmp_path):
    flags = {"split_for_generation": "test", "form": "jsonl", **WITH_IDS}
    path = simulate_api_main.main(gen_flags(tiny_models["t5"]["student"], table, tmp_path / "api", **flags))
    assert [json.loads(line)["id"] for line in path.read_text(encoding="utf-8").splitlines()] == UIDS
