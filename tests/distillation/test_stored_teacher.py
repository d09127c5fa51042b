"""Stored log-probabilities: from file to batch, their losses, and equality with a live teacher."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import slow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_runs import TINY, argv, kd_flags, rows, weights
from torch.nn import functional as F  # noqa: N812

import kd_dataset_with_logits_main
import kd_main
from src.config.constants import IGNORE_INDEX
from src.config.errors import UserError
from src.config.experiments.schema import LossEntry
from src.data.arrow_columns import ArrowColumn
from src.data.formats import read_datasets
from src.data.soft_targets import StoredRows, pad_stored
from src.distillation.capture import capture_states
from src.distillation.objectives import Window, distillation_loss
from src.distillation.teachers import LiveTeacher, StoredTeacher
from src.distillation.token_losses import stored_token_divergence, token_divergence
from src.models.loading import is_encoder_decoder, load_config, load_model, load_tokenizer
from src.tokens.batch import TopK, collate
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedDatasets
from src.training import setup

CLOSE = {"atol": 1e-6, "rtol": 1e-5}


# ------------------------------------------------------------------------------------------------------------- losses


def everything(teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """All tokens of (N, V) teacher logits as entries, in an order of their own."""
    order = torch.stack([torch.randperm(teacher.shape[1]) for _ in teacher])
    return order, teacher.log_softmax(-1).gather(1, order)


def logits(n: int = 5, v: int = 11, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(n, v, requires_grad=True), 2 * torch.randn(n, v)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5, -0.8])
def test_all_tokens_stored_is_the_plain_kl(temperature):
    student, teacher = logits()
    ours = stored_token_divergence(student, *everything(teacher), temperature=temperature)
    plain = token_divergence(student, teacher, temperature)
    torch.testing.assert_close(ours, plain, **CLOSE)
    first, second = (torch.autograd.grad(rows.sum(), student)[0] for rows in (ours, plain))
    torch.testing.assert_close(first, second, **CLOSE)


@pytest.mark.parametrize("missing", ["zero", "bucket"])
def test_nothing_is_missing_of_all_tokens(missing):
    student, teacher = logits()
    ours = stored_token_divergence(student, *everything(teacher), missing_mass=missing)
    torch.testing.assert_close(ours, token_divergence(student, teacher), atol=1e-5, rtol=1e-4)


def top(teacher: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    logs, ids = teacher.log_softmax(-1).topk(k)
    return ids, logs


def dense_reference(student: torch.Tensor, ids: torch.Tensor, logs: torch.Tensor, missing: str) -> torch.Tensor:
    """The definitions, over tensors of the vocabulary's size in float64."""
    q = student.double().softmax(-1)
    p = torch.zeros_like(q).scatter(1, ids, logs.double().exp())
    if missing == "drop":
        p = p / p.sum(-1, keepdim=True)
    terms = torch.where(p > 0, p * (p.clamp_min(1e-300).log() - q.log()), 0.0).sum(-1)
    if missing == "bucket":
        p_rest, q_rest = 1 - p.sum(-1), torch.where(p > 0, 0.0, q).sum(-1)
        terms = terms + p_rest * (p_rest.log() - q_rest.log())
    return terms


@pytest.mark.parametrize("missing", ["drop", "zero", "bucket"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_missing_mass_is_that_of_a_dense_reference(missing, k):
    student, teacher = logits(n=7)
    ids, logs = top(teacher, k)
    ours = stored_token_divergence(student, ids, logs, missing_mass=missing)
    expected = dense_reference(student, ids, logs, missing)
    torch.testing.assert_close(ours.double(), expected, atol=1e-5, rtol=1e-4)
    first, second = (torch.autograd.grad(rows.sum(), student)[0] for rows in (ours, expected))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    assert missing == "zero" or (ours > -1e-6).all()


@pytest.mark.parametrize("missing", ["drop", "zero", "bucket"])
def test_an_absent_entry_changes_nothing(missing):
    student, teacher = logits()
    ids, logs = top(teacher, 3)
    expected = stored_token_divergence(student, ids, logs, missing_mass=missing)
    padded_ids = torch.cat([ids, torch.zeros(5, 2, dtype=torch.long)], 1)
    padded = torch.cat([logs, torch.full((5, 2), -torch.inf)], 1)
    ours = stored_token_divergence(student, padded_ids, padded, missing_mass=missing)
    torch.testing.assert_close(ours, expected)
    assert torch.autograd.grad(ours.sum(), student)[0].isfinite().all()


@pytest.mark.parametrize("missing", ["drop", "zero", "bucket"])
def test_a_hard_label_is_the_nll(missing):
    student, _ = logits()
    labels = torch.tensor([3, 0, 10, 5, 5])
    ours = stored_token_divergence(student, labels[:, None], torch.zeros(5, 1), missing_mass=missing)
    torch.testing.assert_close(ours, F.cross_entropy(student, labels, reduction="none"), atol=1e-4, rtol=1e-4)


def test_a_student_that_has_nothing_left_for_the_bucket_is_finite():
    student = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    rows = stored_token_divergence(student, torch.tensor([[0]]), torch.tensor([[-0.5]]), missing_mass="bucket")
    assert rows.isfinite().all() and rows > 0
    assert torch.autograd.grad(rows.sum(), student)[0].isfinite().all()


def test_no_tensor_of_the_teacher_has_the_size_of_the_vocabulary(monkeypatch):
    """Beside the student's own log-softmax, nothing of V columns is made."""
    student, teacher = logits(n=4, v=1000)
    ids, logs = top(teacher, 5)
    sizes = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] == 1000:
                sizes.append(function.__name__)
            return out

    for missing in ("drop", "zero", "bucket"):
        sizes.clear()
        with Watch():
            stored_token_divergence(student, ids, logs, missing_mass=missing)
        assert set(sizes) <= {"log_softmax", "float"}


# ------------------------------------------------------------------------------------------------------------- columns

TOKENS = [[[1, 2], [3], [4, 5, 6]], [], [[7], []]]
LOGITS = [[[-0.1, -3.0], [0.0], [-1.0, -1.5, -2.0]], [], [[-0.25], []]]


def arrow(path: Path, batches: int = 2, **columns) -> Path:
    """An Arrow file of several record batches."""
    table = pa.table(
        {
            name: pa.array(values, pa.list_(pa.list_(pa.int32() if name == "tokens" else pa.float32())))
            if name in ("tokens", "logits")
            else pa.array(values)
            for name, values in columns.items()
        }
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for start in range(0, len(table), -(-len(table) // batches)):
            writer.write_table(table.slice(start, -(-len(table) // batches)))
    return path


@pytest.mark.parametrize("form", ["lists", "arrow"])
def test_rows_and_padding(tmp_path, form):
    tokens, logs = TOKENS, LOGITS
    if form == "arrow":
        (tmp_path / "d").mkdir()
        arrow(tmp_path / "d" / "train.arrow", text=["a", "b", "c"], tokens=TOKENS, logits=LOGITS)
        columns = read_datasets(tmp_path / "d")["train"]
        assert columns["text"] == ["a", "b", "c"]
        tokens, logs = columns["tokens"], columns["logits"]
        assert isinstance(tokens, ArrowColumn) and list(tokens) == TOKENS and tokens[2] == TOKENS[2]
        assert list(tokens[:2]) == TOKENS[:2]
    stored = StoredRows.of(tokens, logs, "here")
    assert stored.n_positions().tolist() == [3, 0, 2]
    counts, ids, values = stored.row(0)
    assert (counts.tolist(), ids.tolist()) == ([2, 1, 3], [1, 2, 3, 4, 5, 6])
    assert values == pytest.approx([-0.1, -3.0, 0.0, -1.0, -1.5, -2.0])
    ids, values = pad_stored([stored.row(row) for row in range(3)], 3)
    assert ids.shape == (3, 3, 3)
    assert ids[0].tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]]
    assert np.isneginf(values[0]).tolist() == [[False, False, True], [False, True, True], [False] * 3]
    assert np.isneginf(values[1]).all() and np.isneginf(values[2, 1:]).all()
    assert values[2, 0, 0] == pytest.approx(-0.25)


@pytest.mark.parametrize(
    ("tokens", "logs", "said"),
    [
        ([[[1]]], [[[-1.0], [-2.0]]], "differ in shape"),
        ([[[1, 2]]], [[[-1.0]]], "differ in shape"),
        ([["1"]], [[[-1.0]]], "must be lists of lists of numbers"),
        ([[1]], [[-1.0]], "must be lists of lists of numbers"),
        ([[["a"]]], [[[-1.0]]], "must be lists of lists of numbers"),
        ([[[1]]], [[[None]]], "row 0: token 1 with log-probability nan"),
        ([[[1]], [[2], [99]]], [[[-1.0]], [[-1.0], [-1.0]]], "row 1: token 99"),
        ([[[1]], [[-1]]], [[[-1.0]], [[-1.0]]], "row 1: token -1"),
        ([[[1]], [[2]]], [[[-1.0]], [[0.5]]], "row 1: token 2 with log-probability 0.5"),
        ([[[1]]], [[[float("nan")]]], "row 0: token 1 with log-probability nan"),
    ],
)
def test_columns_that_store_nothing(tokens, logs, said):
    with pytest.raises(UserError, match=f"here.*{said}"):
        StoredRows.of(tokens, logs, "here").check(50, "here")


# -------------------------------------------------------------------------------------------------- a teacher, stored


def tokenization_of(model: str, max_labels_length: int = TINY["max_labels_length"]) -> Preprocessor:
    kind = is_encoder_decoder(load_config(model))
    return Preprocessor(load_tokenizer(model), kind, TINY["max_input_length"], max_labels_length, "summarize:")


def store(teacher: str, datasets: dict, k: int | None, max_labels_length: int = TINY["max_labels_length"]) -> dict:
    """The data with the k likeliest tokens (None: all) of a live teacher at every label position of training splits."""
    model = load_model(teacher)
    preprocessor = tokenization_of(teacher, max_labels_length)
    tokenized = TokenizedDatasets({name: split for name, split in datasets.items() if "target" in split}, preprocessor)
    entry = LossEntry(name="x", logits_weight=1.0)
    stored = {}
    for name, columns in datasets.items():
        stored[name] = dict(columns)
        if not name.startswith("train"):
            continue
        stored[name]["tokens"], stored[name]["logits"] = [], []
        for row in range(len(columns["text"])):
            batch = collate(preprocessor, tokenized.split(name), [row])
            logs = LiveTeacher(model, {})(batch, entry).logits.logits.log_softmax(-1)
            best, ids = logs.topk(k or logs.shape[1])
            stored[name]["tokens"].append(ids.tolist())
            stored[name]["logits"].append(best.tolist())
    return stored


def stored_flags(model: str, data: Path, out: Path, **flags) -> list[str]:
    named = {"student_name": model, "dataset_path": data, "output_dir": out, "experiment_config_key": "logits_kd"}
    return argv({**TINY, **named, **flags})


REVERSE = """
mine: {name: mine, layer: last, scheduling: none, losses: [both]}
both: {forward_weight: 0.5, reverse_kl_weight: 2}
last: {student_dec_sa_layer: -1}
none: {keep_last: True}
"""


@pytest.mark.parametrize("family", [*slow("t5"), "gpt2"])
def test_a_new_divergence_goes_the_whole_road(new_divergence, tiny_models, rotation_path, tmp_path, family, capsys):
    """One function; its YAML key, its column and its line in --list_experiments follow, live and stored alike."""
    data, experiments = tmp_path / "stored.json", tmp_path / "mine.yaml"
    data.write_text(
        json.dumps(store(tiny_models[family]["teacher"], json.loads(Path(rotation_path).read_text()), None))
    )
    experiments.write_text(REVERSE)
    named = {"experiment_config_path": experiments, "experiment_config_key": "mine"}
    with pytest.raises(SystemExit):
        kd_main.main(["--list_experiments", "True", "--experiment_config_path", str(experiments)])
    assert capsys.readouterr().out.splitlines()[-1] == "mine  0.5 NLL + 2 reverse KL"
    flags = {"epochs": 2, "optimizer_eps": 1e-4, **named}
    kd_main.main(kd_flags(tiny_models[family], rotation_path, tmp_path / "live", **flags))
    kd_dataset_with_logits_main.main(stored_flags(tiny_models[family]["student"], data, tmp_path / "kd", **flags))
    live, ours = (rows(tmp_path / out, "train_losses.csv") for out in ("live", "kd"))
    assert live and len(live) == len(ours)
    for first, second in zip(live, ours, strict=True):
        assert float(first["reverse_kl"]) > 0
        assert float(second["reverse_kl"]) == pytest.approx(float(first["reverse_kl"]), rel=1e-3)
        total = 0.5 * float(first["forward"]) + 2 * float(first["reverse_kl"])
        assert float(first["loss"]) == pytest.approx(total, rel=1e-4)
    experiments.write_text(REVERSE.replace("reverse_kl_weight", "revers_kl_weight"))
    with pytest.raises(UserError, match="unknown key 'revers_kl_weight'; nearest: 'reverse_kl_weight'"):
        kd_main.main(kd_flags(tiny_models[family], rotation_path, tmp_path / "no", **named))


@pytest.mark.parametrize(
    ("form", "family"),
    [
        ("arrow", "gpt2"),
        *slow(("arrow", "t5"), ("json", "t5"), ("json", "gpt2")),
    ],
)
def test_a_live_and_a_stored_teacher_give_the_same_trajectory(tiny_models, rotation_path, tmp_path, family, form):
    """All tokens stored, 20 steps, dropout 0: equal weights, losses and scores."""
    datasets = json.loads(Path(rotation_path).read_text())
    stored = store(tiny_models[family]["teacher"], datasets, None)
    if form == "json":
        data = tmp_path / "stored.json"
        data.write_text(json.dumps(stored))
    else:
        data = tmp_path / "stored"
        data.mkdir()
        for name, columns in stored.items():
            arrow(data / f"{name}.arrow", **columns)
    # Adam divides by the gradient's size: a larger epsilon keeps rounding errors of tiny gradients small.
    flags = {"epochs": 6, "stop_training_after_n_epochs": 4, "ft_steps_at_end": 1, "optimizer_eps": 1e-4}
    kd_main.main(kd_flags(tiny_models[family], rotation_path, tmp_path / "live", **flags))
    kd_dataset_with_logits_main.main(stored_flags(tiny_models[family]["student"], data, tmp_path / "kd", **flags))
    live, ours = (weights(tmp_path / out / "model") for out in ("live", "kd"))
    start = weights(Path(tiny_models[family]["student"]))
    assert any((live[name] - start[name]).abs().max() > 1e-3 for name in live if name in start)
    for name in live:
        torch.testing.assert_close(ours[name], live[name], atol=1e-5, rtol=0)
    losses = [[float(row["loss"]) for row in rows(tmp_path / out, "train_losses.csv")] for out in ("live", "kd")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    n_steps = sum(-(-len(stored[f"train_{i % 3}"]["text"]) // 2) for i in range(4))
    assert n_steps >= 19


@pytest.mark.parametrize("family", [*slow("t5"), "gpt2"])
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(limit=st.integers(1, 20), n_words=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_of_cut_targets_too_a_stored_teacher_teaches_what_a_live_one_does(tiny_models, family, limit, n_words):
    """Prepared without a limit, learned from with one: losses and gradients are those of a live teacher."""
    words = ["the", "old", "red", "cat", "sees", "a", "new", "blue", "bird"]
    texts = [" ".join(words[:n]) for n in n_words]
    models = tiny_models[family]
    stored = store(models["teacher"], {"train": {"text": texts, "target": texts}}, None, 60)
    preprocessor = tokenization_of(models["student"], limit)
    batch = collate(preprocessor, TokenizedDatasets(stored, preprocessor).split("train"), range(len(texts)))
    assert batch.labels.shape[1] <= limit
    entry = LossEntry(name="x", logits_weight=0.7, forward_weight=0.3)
    window = Window(len(texts), len(batch.valid))
    student = load_model(models["student"])
    made = []
    for teacher in (LiveTeacher(load_model(models["teacher"]), {}), StoredTeacher()):
        student.zero_grad()
        loss, _ = distillation_loss(
            capture_states(student, batch, entry, {}), teacher(batch, entry), batch, entry, window
        )
        loss.backward()
        made.append((loss.detach(), torch.cat([each.grad.flatten() for each in student.parameters()])))
    (live, of_live), (ours, of_ours) = made
    torch.testing.assert_close(ours, live, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(of_ours, of_live, atol=1e-5, rtol=1e-4)


def test_an_empty_entry_is_not_learnt_from(tiny_models):
    """The EOS of a truncated completion: no label, no loss, no gradient, whatever the student thinks of it."""
    texts = ["The cat sees.", "A dog."]
    stored = store(tiny_models["t5"]["teacher"], {"train": {"text": texts, "target": texts}}, 3)
    stored["train"]["tokens"][0][-1], stored["train"]["logits"][0][-1] = [], []
    preprocessor = tokenization_of(tiny_models["t5"]["student"])
    batch = collate(preprocessor, TokenizedDatasets(stored, preprocessor).split("train"), [0, 1])
    n_labels = len(stored["train"]["tokens"][0])
    assert batch.labels[0, n_labels - 1] == IGNORE_INDEX
    taught = StoredTeacher()(batch, LossEntry(name="x", logits_weight=1.0))
    assert (
        taught.ids.shape[0] == (batch.labels != IGNORE_INDEX).sum() == n_labels - 1 + len(stored["train"]["tokens"][1])
    )
    assert torch.isfinite(taught.logs[:, 0]).all()


def test_shares_of_a_window_add_up(tiny_models):
    from src.distillation.capture import capture_states

    texts = ["The old red cat sees the bird.", "A dog.", "Near.", "A blue bird."]
    stored = store(tiny_models["t5"]["teacher"], {"train": {"text": texts, "target": texts}}, 4)
    preprocessor = tokenization_of(tiny_models["t5"]["student"])
    split = TokenizedDatasets(stored, preprocessor).split("train")
    student = load_model(tiny_models["t5"]["student"])
    entry = LossEntry(name="x", logits_weight=0.5, forward_weight=0.5)
    whole = collate(preprocessor, split, [0, 1, 2, 3])
    window = Window(4, int((whole.labels != IGNORE_INDEX).sum()))

    def loss(rows_: list[int]) -> torch.Tensor:
        batch = collate(preprocessor, split, rows_)
        return distillation_loss(
            capture_states(student, batch, entry, {}), StoredTeacher()(batch, entry), batch, entry, window
        )[0]

    torch.testing.assert_close(loss([0, 1, 2, 3]), loss([0]) + loss([1, 2]) + loss([3]))


def test_data_for_another_tokenizer_are_refused_by_row_before_weights_are_read(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(setup, "load_model", None)
    texts = ["The cat sees.", "A dog."]
    stored = store(tiny_models["t5"]["teacher"], {"train": {"text": texts, "target": texts}}, 2)
    for column in ("tokens", "logits"):
        stored["train"][column][1].pop()
    (tmp_path / "d.json").write_text(json.dumps(stored))
    with pytest.raises(
        UserError, match=r"split 'train', row 1: 'tokens' has \d+ positions, but the student's tokenizer"
    ):
        kd_dataset_with_logits_main.main(
            stored_flags(tiny_models["t5"]["student"], tmp_path / "d.json", tmp_path / "o")
        )


@pytest.mark.parametrize("key", ["noisy_kd", "attention_kd", "hidden_kd", "logits_kd_student_gens"])
def test_an_experiment_that_needs_the_model_is_refused(tiny_models, tmp_path, rotation_path, key):
    flags = stored_flags(tiny_models["t5"]["student"], Path(rotation_path), tmp_path / "o", experiment_config_key=key)
    with pytest.raises(UserError, match="needs the teacher's model"):
        kd_dataset_with_logits_main.main(flags)
    assert not (tmp_path / "o").exists()


def test_a_split_without_log_probabilities_is_refused(tiny_models, tmp_path, rotation_path):
    with pytest.raises(UserError, match="split 'train_0' has no column 'tokens'"):
        kd_dataset_with_logits_main.main(
            stored_flags(tiny_models["t5"]["student"], Path(rotation_path), tmp_path / "o")
        )


def test_the_batch_moves_with_its_teacher():
    from src.tokens.batch import Batch

    ids = torch.ones(1, 1, dtype=torch.long)
    teacher = TopK(torch.ones(1, 1, 2, dtype=torch.long), torch.zeros(1, 1, 2))
    moved = replace(Batch(ids, ids, ids, (0,)), teacher=teacher).to(torch.device("meta"))
    assert moved.teacher.ids.device.type == moved.teacher.logs.device.type == "meta"
