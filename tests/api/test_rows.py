"""prepare_datasets_main.py --logits_dataset_path, from flags to files: splits, both output formats, errors."""

import json

import numpy as np
import pyarrow
import pytest
from tiny_runs import snapshot
from tiny_students import FAMILY, model_folder, preprocessor

from prepare_datasets_main import main
from src.api.alignment import Alignment
from src.config.cli import run_script
from src.config.errors import UserError
from src.data import writers
from src.data.formats import read_datasets
from src.data.schema import check_trainable
from src.data.writers import open_dataset
from src.models.loading import load_tokenizer
from src.prepare_datasets import stored_table
from src.tokens.tokenized import TokenizedDatasets
from tests.api.test_alignment import STUDENTS

KINDS = ("unigram", "bytes")


@pytest.fixture(scope="session")
def students(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("students")
    return {kind: model_folder(root / kind, STUDENTS[kind], FAMILY[kind]) for kind in KINDS}


def row(text: str, prediction: str, target: str | None = "a dog", **fields: object) -> dict:
    """A row whose tokens are the words of the prediction, each with one other word."""
    words = prediction.split(" ") if prediction else []
    tokens = [f" {word}" if i else word for i, word in enumerate(words)]
    logprobs = [{token: -0.1 * (i + 1), " bird": -3.0 - i} for i, token in enumerate(tokens)]
    return {"text": text, "target": target, "prediction": prediction, "tokens": tokens, "logprobs": logprobs, **fields}


def columns(*rows: dict) -> dict[str, list]:
    return {name: [one[name] for one in rows] for name in rows[0]}


API = {
    "train": columns(row("x", "the cat"), row("y", "the dog"), row("x", "a cat", "the bird"), row("z", "")),
    "unlabeled": columns(row("y", "old cat", None), row("u", "new dog", None)),
    "dev": {"text": ["d"], "target": ["the dog"], "prediction": ["the red dog"]},
    "test": {"text": ["t", "x"], "target": ["a dog", "a cat"]},
}


@pytest.fixture
def prepare(tmp_path, students):
    """Write an API file, JSON or (a list) JSON Lines, and prepare it for a student."""

    def run(data: dict | list, *flags: object, kind: str = "unigram", file_name: str = "made.json") -> dict:
        path = tmp_path / ("api.jsonl" if isinstance(data, list) else "api.json")
        lines = "\n".join(map(json.dumps, data)) if isinstance(data, list) else json.dumps(data)
        path.write_text(lines)
        given = [*flags, "--logits_dataset_path", path, "--student_name", students[kind], "--file_name", file_name]
        return read_datasets(main([*map(str, given), "--output_dir", str(tmp_path / "out")]))

    return run


def as_lines(data: dict) -> list[dict]:
    """The same rows as JSON Lines of completion responses, with a split's name in each."""
    lines = []
    for split, rows in data.items():
        for i, text in enumerate(rows["text"]):
            line = {"text": text, "target": rows["target"][i], "split": split}
            if "prediction" in rows:
                logprobs = (
                    {"tokens": rows["tokens"][i], "top_logprobs": rows["logprobs"][i]} if "tokens" in rows else None
                )
                line["response"] = {"choices": [{"text": rows["prediction"][i], "logprobs": logprobs}]}
            lines.append(line)
    return lines


def plain(datasets: dict) -> dict:
    """With all columns as lists, whatever holds them."""
    return {split: {name: list(values) for name, values in rows.items()} for split, rows in datasets.items()}


def as_float32(value):
    return [as_float32(each) for each in value] if isinstance(value, list) else float(np.float32(value))


# --------------------------------------------------------------------------------------------------------------- result


@pytest.mark.parametrize("kind", KINDS)
def test_a_prepared_file(prepare, students, kind, capsys):
    made = prepare(API, kind=kind)
    assert list(made) == ["train_0", "train_1", "dev", "test", "ft"]
    assert made["train_0"]["text"] == ["x", "y", "z", "u"]
    assert made["train_0"]["target"] == ["the cat", "the dog", "", "new dog"]
    assert made["train_0"]["reference"] == ["a dog", "a dog", "a dog", None]
    assert (made["train_1"]["text"], made["train_1"]["target"]) == (["x", "y"], ["a cat", "old cat"])
    assert made["dev"] == {"text": ["d"], "target": ["the red dog"], "reference": ["the dog"]}
    assert made["test"] == {"text": ["t", "x"], "target": ["a dog", "a cat"], "reference": ["a dog", "a cat"]}
    assert made["ft"] == {"text": ["x", "y", "z"], "target": ["the cat", "the dog", ""], "reference": ["a dog"] * 3}
    check_trainable(made, "made")
    tokenizer = load_tokenizer(students[kind])
    ids = [[tokenizer.convert_ids_to_tokens(entry) for entry in tokens] for tokens in made["train_0"]["tokens"]]
    the, cat, bird = (f"{'Ġ' if kind == 'bytes' else '▁'}{word}" for word in ("the", "cat", "bird"))
    end = tokenizer.eos_token
    assert ids[0] == [[the, bird], [cat, bird], [end]]
    assert made["train_0"]["logits"][0] == [[-0.1, -3.0], [-0.2, -4.0], [0.0]]
    assert (ids[2], made["train_0"]["logits"][2]) == ([[end]], [[0.0]])
    assert "label tokens: 10 (100.0% aligned, mass kept there 100.0%; 0.0% hard labels)" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_the_labels_that_are_trained_on(prepare, students, kind):
    texts = ["the cat walking.", "Don't — 🙂 see", "a, b?", " red  cat "]
    made = prepare({"train": columns(*(row(f"x{i}", text) for i, text in enumerate(texts)))}, kind=kind)
    tokenizer = load_tokenizer(students[kind])
    labels = preprocessor(tokenizer, is_encoder_decoder=kind != "bytes").encode_labels(made["train_0"]["target"]).tokens
    assert list(map(len, made["train_0"]["tokens"])) == labels.lengths.tolist()
    for i, entries in enumerate(made["train_0"]["tokens"]):
        assert all(label in entry for label, entry in zip(labels[i].tolist(), entries, strict=True))
    split = TokenizedDatasets(made, preprocessor(tokenizer, is_encoder_decoder=kind != "bytes")).split("train_0")
    assert split.teacher is not None


@pytest.mark.parametrize("kind", KINDS)
def test_every_form_and_both_outputs_hold_the_same(prepare, kind, tmp_path):
    made = prepare(API, kind=kind)
    assert prepare(as_lines(API), kind=kind) == made
    for data in (API, as_lines(API)):
        arrow = prepare(data, kind=kind, file_name="made.arrow")
        assert sorted(path.name for path in (tmp_path / "out" / "made.arrow").iterdir()) == sorted(
            f"{split}.arrow" for split in made
        )
        found = plain({split: arrow[split] for split in made})
        for split in ("train_0", "train_1"):
            made[split]["logits"] = [as_float32(each) for each in made[split]["logits"]]
        assert found == made


def test_many_record_batches(prepare, monkeypatch, tmp_path):
    monkeypatch.setattr(writers, "ROWS_PER_BATCH", 3)
    rows = [row(f"x{i}", "the cat" + " likes" * (i % 4)) for i in range(20)]
    expected = prepare({"train": columns(*rows)})["train_0"]
    found = plain(prepare({"train": columns(*rows)}, file_name="made.arrow"))["train_0"]
    assert found["tokens"] == expected["tokens"]
    assert found["text"] == [f"x{i}" for i in range(20)]
    with pyarrow.memory_map(str(tmp_path / "out" / "made.arrow" / "train_0.arrow")) as source:
        reader = pyarrow.ipc.open_file(source)
        assert reader.num_record_batches == 7
        nested = pyarrow.list_(pyarrow.list_(pyarrow.int32()))
        assert reader.schema.field("tokens").type == nested
        assert reader.schema.field("logits").type == pyarrow.list_(pyarrow.list_(pyarrow.float32()))


@pytest.mark.parametrize("name", ["made.json", "made.arrow"])
def test_the_same_data_and_seed_give_the_same_bytes(prepare, tmp_path, name):
    many = {"train": columns(*(row(f"x{i}", "the cat") for i in range(40))), "dev": API["dev"]}
    written = []
    for seed in (1, 1, 2):
        prepare(many, "--debug", "True", "--seed", seed, file_name=name)
        written.append(snapshot(tmp_path / "out"))
    assert written[0] == written[1] != written[2]


def test_debug(prepare):
    many = {"train": columns(*(row(f"x{i}", "the cat") for i in range(40)))}
    many["dev"] = {name: many["train"][name] for name in ("text", "target", "prediction")}
    made = prepare(many, "--debug", "True")
    assert {split: len(rows["text"]) for split, rows in made.items()} == {"train_0": 32, "dev": 16, "ft": 16}


def test_completions_per_input(prepare, capsys, caplog):
    one = prepare(API, "--n_augmentations_per_example", 1)
    assert [split for split in one if split.startswith("train")] == ["train_0"]
    with pytest.raises(UserError, match="3 is more than any input has: at most 2"):
        prepare(API, "--n_augmentations_per_example", 3)
    choices = [
        {"text": text} | {"logprobs": {"tokens": [text], "token_logprobs": [-1.0]}} for text in ("a", "the", "old")
    ]
    made = prepare(
        [{"text": "x", "response": {"choices": choices}}, {"text": "x", "response": {"choices": choices[:1]}}]
    )
    assert [made[f"train_{i}"]["target"] for i in range(4)] == [["a"], ["the"], ["old"], ["a"]]


def test_labeled_and_unlabeled(prepare):
    assert prepare(API, "--use_unlabeled", "False")["train_0"]["text"] == ["x", "y", "z"]
    made = prepare(API, "--use_labeled", "False")
    assert made["train_0"]["text"] == made["ft"]["text"] == ["y", "u"]  # none is labeled


def test_references_instead_of_completions(prepare, capsys):
    made = prepare({**API, "dev": {"text": ["d"], "target": ["the dog"]}}, "--n_augmentations_per_example", 0)
    assert list(made) == ["train_0", "dev", "test", "ft"]
    assert made["train_0"]["text"] == ["x", "y", "x", "z"]  # `x` has two references
    assert made["train_0"]["target"] == made["train_0"]["reference"] == made["ft"]["target"]
    assert made["train_0"]["target"] == ["a dog", "a dog", "the bird", "a dog"]
    assert made["dev"]["target"] == ["the dog"]
    assert set(map(len, (entry for tokens in made["train_0"]["tokens"] for entry in tokens))) == {1}
    assert {value for logs in made["train_0"]["logits"] for entry in logs for value in entry} == {0.0}
    twice = {"train": columns(row("x", "the cat"), row("x", "the dog"))}
    assert prepare(twice, "--n_augmentations_per_example", 0)["train_0"]["text"] == ["x"]


def test_the_files_own_ft(prepare):
    made = prepare({**API, "ft": {"text": ["f"], "target": ["a"], "prediction": ["the"]}})
    assert made["ft"] == {"text": ["f"], "target": ["the"], "reference": ["a"]}


def test_completions_that_are_cut_off(prepare, capsys, caplog):
    rows = [
        row("x", "the cat", finish_reason="length"),
        row("y", "", finish_reason="length"),
        row("y", "a", finish_reason=None),
    ]
    made = prepare({"train": columns(*rows)})
    assert made["train_0"]["target"] == ["the cat", "a"]
    assert [len(entry) for entry in made["train_0"]["tokens"][0]] == [2, 2, 0]
    assert "1 empty completions that were cut off are left out" in caplog.text
    assert "completions: 2 (1 cut off, 0 empty)" in capsys.readouterr().out


def test_where_texts_are_plain_targets_completions_that_are_cut_off_are_left_out(prepare, caplog):
    """Their end would be learned in the closing fine-tuning, and measured on dev."""
    train = [row("x", "the cat", finish_reason="length"), row("y", "a", finish_reason="stop")]
    dev = [row("d", "the", finish_reason="length"), row("e", "dog", finish_reason="stop")]
    made = prepare({"train": columns(*train), "dev": columns(*dev)})
    assert made["train_0"]["text"] == ["x", "y"]
    assert (made["ft"]["text"], made["dev"]["text"]) == (["y"], ["e"])
    for split in ("ft", "dev"):
        assert f"split '{split}': 1 of 2 completions were cut off and are left out" in caplog.text
    ft = [row("f", "the", finish_reason="length"), row("g", "a", finish_reason="stop")]
    assert prepare({"train": columns(*train), "ft": columns(*ft)})["ft"]["text"] == ["g"]
    cut = prepare({"train": columns(*train[:1])})
    assert "ft" not in cut and cut["train_0"]["text"] == ["x"]


FAILURES = [
    {"text": "f", "response": None},
    {"text": "f", "response": {"error": {"code": 429}}},
    {"text": "g", "response": {"choices": [{"message": {"content": None, "refusal": "no"}}]}},
    {"text": "h", "split": "unlabeled", "response": None},
    {"text": "i", "response": {"choices": [{"text": "the cat", "logprobs": None}]}},
    {"text": "d", "split": "dev", "response": None},
]


def test_answers_that_failed_are_left_out_and_counted(prepare, caplog):
    good = as_lines(API)
    data = [*FAILURES[:3], *good, *FAILURES[3:]]
    made = prepare(data, "--max_failed_share", 0.5)
    assert plain(made) == plain(prepare(good))
    said = [record.getMessage().partition(": ")[2] for record in caplog.records if "failed" in record.getMessage()]
    assert said == [
        "6 of 13 answers failed and are left out: 3 no response (line 1; line 13; line 15), 1 error 429 (line 2), "
        "1 refused (line 3), 1 no log-probabilities (line 14)"
    ]
    with pytest.raises(UserError, match="6 of 13 answers failed, more than --max_failed_share 0.46: 3 no response"):
        prepare(data, "--max_failed_share", 0.46)


def test_a_choice_that_failed_leaves_the_others(prepare):
    response = {"choices": [{"text": None}, {"text": "the cat", "logprobs": {"tokens": ["the", " cat"]}}]}
    lines = [{"text": "x", "response": response}, {"text": "d", "split": "dev", "response": response}]
    made = prepare(lines, "--max_failed_share", 0.5)
    assert list(made) == ["train_0", "dev", "ft"]
    assert made["train_0"]["target"] == made["dev"]["target"] == made["ft"]["target"] == ["the cat"]


def test_references_need_no_answers(prepare):
    lines = [{"text": "x", "target": "the cat", "response": None}]
    assert prepare(lines, "--n_augmentations_per_example", 0)["train_0"]["target"] == ["the cat"]


def test_a_split_whose_answers_all_failed_is_refused(prepare):
    lines = [*as_lines(API), {"text": "f", "split": "dev_ppl", "response": None}]
    with pytest.raises(UserError, match=r"split 'dev_ppl': all of its 1 answers failed: 1 no response \(line 10\)"):
        prepare(lines, "--max_failed_share", 1)


def test_more_failures_of_a_kind_than_are_named(prepare, caplog):
    lines = [{"text": str(i), "response": {"error": {"code": i // 5}}} for i in range(35)]
    prepare([*lines, *as_lines(API)], "--max_failed_share", 1)
    (said,) = [record.getMessage() for record in caplog.records if "failed" in record.getMessage()]
    assert "35 of 42 answers failed and are left out: 5 error" in said
    assert "5 error 1 (line 6; line 7; line 8; …)" in said
    assert said.endswith(", …")
    assert len(said) < 500


def test_the_report():
    counted = Alignment(completions=3, positions=8, aligned=6, hard=3, mass=4.5, cut_off=1)
    assert stored_table({"train_0": 2_000, "train_1": 1, "dev": 5}, counted).splitlines() == [
        "train_0 … train_1  2,000 – 1 rows",
        "dev                        5 rows",
        "completions: 3 (1 cut off, 0 empty)",
        "label tokens: 8 (75.0% aligned, mass kept there 75.0%; 37.5% hard labels)",
    ]


# --------------------------------------------------------------------------------------------------------------- errors


def without(split: str, *names: str) -> dict:
    return {**API, split: {name: values for name, values in API[split].items() if name not in names}}


BROKEN = row("w", "the cat") | {"tokens": ["the", " dog"]}
REFUSED = {
    "dev": (
        without("dev", "prediction"),
        "api.json: 1 of 7 answers failed, more than --max_failed_share 0.1: 1 no prediction (split 'dev', row 0); ask",
    ),
    "train": (
        without("train", "prediction"),
        "api.json: 4 of 7 answers failed, more than --max_failed_share 0.1: 4 no prediction (split 'train', row 0; ",
    ),
    "a dev row": (
        {**API, "dev": {"text": ["d", "e"], "prediction": ["a", None]}},
        "1 of 8 answers failed, more than --max_failed_share 0.1: 1 no prediction (split 'dev', row 1)",
    ),
    "no tokens": (
        without("train", "tokens", "logprobs"),
        "3 no log-probabilities (split 'train', row 0; split 'train', row 1; split 'train', row 2); ask",
    ),
    "text": (
        {**API, "train": columns(row("x", "a"), BROKEN)},
        "split 'train', row 1: its tokens do not spell its text",
    ),
    "nothing": ({"dev": API["dev"]}, "no completions of ['train', 'unlabeled']: nothing to train on"),
    "a line": ([*as_lines(API), {"text": "x", "response": {}}], "api.jsonl: line 10: its 'response' has no 'choices'"),
    "late": ([*as_lines(API), BROKEN], "api.jsonl: line 10: its tokens do not spell its text; token 1 is ' dog'"),
}


@pytest.mark.parametrize("output", ["made.json", "made.arrow"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_leaves_nothing_behind(prepare, tmp_path, name, output, monkeypatch):
    monkeypatch.setattr(writers, "ROWS_PER_BATCH", 1)  # rows are on disk when the error comes
    data, said = REFUSED[name]
    with pytest.raises(UserError) as error:
        prepare(data, file_name=output)
    assert said in str(error.value)
    assert [path.suffix for path in tmp_path.iterdir()] in ([".json"], [".jsonl"])  # the input
    prepare(API, file_name=output)
    before = snapshot(tmp_path / "out")
    with pytest.raises(UserError):
        prepare(data, file_name=output)
    assert snapshot(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--logits_dataset_path", "@/none.json"], "none.json: No such file"),
        (["--logits_dataset_path", "@/none.jsonl"], "none.jsonl: No such file"),
        (["--student_name", "@/none"], "none: no such model folder"),
        (["--alignment", "best"], "--alignment: 'best' is not one of"),
        (["--n_augmentations_per_example", "0", "--use_labeled", "False"], "0 needs rows of 'train' with 'target'"),
        (["--output_dir", "@", "--file_name", "api.json"], "api.json: is read to make this file"),
    ],
)
def test_commands_that_are_refused(tmp_path, students, flags, said, capsys):
    (tmp_path / "api.json").write_text(json.dumps(API))
    command = [
        "--logits_dataset_path",
        "@/api.json",
        "--student_name",
        students["unigram"],
        "--output_dir",
        "@/out",
        *flags,
    ]
    assert run_script(main, [value.replace("@", str(tmp_path)) for value in command]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert [path.name for path in tmp_path.iterdir()] == ["api.json"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "a.arrow").mkdir()
    (tmp_path / "a.arrow" / "thesis.txt").write_text("mine")
    with (
        pytest.raises(UserError, match=r"a.arrow: holds 'thesis.txt', which is not an Arrow file"),
        open_dataset(tmp_path / "a.arrow", ["train_0"]),
    ):
        pass
    (tmp_path / "b.arrow").write_text("mine")
    with pytest.raises(UserError, match="b.arrow: is a file"), open_dataset(tmp_path / "b.arrow", ["train_0"]):
        pass
    assert (tmp_path / "a.arrow" / "thesis.txt").read_text() == "mine"
