"""Training loop: updates, order of events, and the best weights."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import slow
from tiny_runs import TINY, argv, ft_flags, kd_flags, names, places, read, result, rows, weights
from torch.optim.optimizer import register_optimizer_step_pre_hook

import ft_main
import kd_dataset_with_logits_main
import kd_main
from src.config.cli import run_script
from src.config.errors import UserError
from src.data.formats import read_datasets
from src.distillation.student_targets import student_writes
from src.distillation.teachers import LiveTeacher
from src.evaluation.evaluate import Evaluation, Evaluator
from src.models import forward
from src.models.loading import is_encoder_decoder, load_config, load_model, load_tokenizer
from src.tokens.batch import collate
from src.tokens.order import chunks, epoch_order
from src.tokens.preprocessing import Preprocessor
from src.tokens.tokenized import TokenizedDatasets, TokenizedSplit
from src.training import rhythm
from src.training import update as one_update
from src.training.update import Updater

UNEQUAL = [
    "A.",
    "The old red cat sees.",
    "Dog.",
    "A new blue bird likes the house.",
    "Near.",
    "The cat.",
    "A dog sees.",
]


@dataclass
class Update:
    """What an optimizer step found: gradients and weights (flat, all parameters), the rate, steps taken before."""

    gradient: torch.Tensor
    weights: torch.Tensor
    rate: float
    steps_before: int


@pytest.fixture
def updates():
    """Every optimizer step of the test, in order."""
    seen: list[Update] = []

    def note(optimizer, _args, _kwargs):
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        state = optimizer.state.get(parameters[0], {"step": 0})
        seen.append(
            Update(
                torch.cat(
                    [(torch.zeros_like(each) if each.grad is None else each.grad).flatten() for each in parameters]
                ),
                torch.cat([each.detach().flatten() for each in parameters]),
                float(optimizer.param_groups[0]["lr"]),
                int(state["step"]),
            )
        )

    handle = register_optimizer_step_pre_hook(note)
    yield seen
    handle.remove()


@pytest.fixture
def seen_rows(monkeypatch) -> list[tuple[str, tuple[int, ...]]]:
    """(split, rows) of every micro-batch that was trained on."""
    seen = []
    learn = Updater._learn

    def noted(self, phase, entry, batch, *args, **kwargs):
        seen.append((rhythm.rotated(phase.splits, self.state.epoch - self.state.phase_start), batch.rows))
        return learn(self, phase, entry, batch, *args, **kwargs)

    monkeypatch.setattr(Updater, "_learn", noted)
    return seen


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations without generation: `scripted(3.0, 1.0)` are the scores on dev, one after another."""

    def script(*dev_scores: float) -> None:
        waiting = iter(dev_scores)

        def evaluate(self, model, split, references, *, likelihood_split=None, final=False):
            score = next(waiting) if split.name == "dev" else 50.0
            values = {name: score if name in ("sacrebleu", "nll") else 0.0 for name in self.columns}
            return Evaluation(values, ["-"] * len(references))

        monkeypatch.setattr(Evaluator, "evaluate", evaluate)

    return script


def write(path: Path, **splits: list[str] | int) -> Path:
    """A copy task as a dataset file: texts by split, or a number of different ones."""
    datasets = {}
    for split, texts in splits.items():
        texts = [f"The cat {'sees ' * (i % 3)}a dog{i}." for i in range(texts)] if isinstance(texts, int) else texts
        datasets[split] = {"text": texts, "target": texts}
    path.write_text(json.dumps(datasets))
    return path


def write_experiment(path: Path, *losses: dict, schedule: dict | None = None) -> dict[str, str]:
    """An experiment with these losses, loss_0 and so on, as a file; the flags that name it."""
    named = {f"loss_{number}": loss for number, loss in enumerate(losses)}
    experiment = {"name": "test", "layer": "last", "scheduling": "when", "losses": list(named)}
    entries = {"test": experiment, "last": {"student_dec_sa_layer": -1}, "when": schedule or {"keep_last": True}}
    path.write_text(json.dumps(entries | named))
    return {"experiment_config_path": str(path), "experiment_config_key": "test"}


@pytest.fixture
def model(dropout_models) -> str:
    return dropout_models["gpt2"]["student"]


# ------------------------------------------------------------------------------------------------------- accumulation


def train_accumulated(tiny_models, data: Path, out: Path, objective: str, micro: int) -> None:
    """An epoch with updates of 8 rows and of 3."""
    family, _, loss = objective.partition(" ")
    # Adam divides by the gradient's size: a large epsilon keeps rounding errors of tiny gradients as small as they are.
    flags = {"epochs": 1, "batch_size": 8, "max_gpu_batch_size": micro, "optimizer_eps": 0.01, "max_labels_length": 12}
    if loss == "nll":
        ft_main.main(ft_flags(tiny_models[family]["student"], data, out, **flags))
    else:
        experiment = write_experiment(out.parent / "plain.yaml", {f"{loss}_weight": 1.0})
        kd_main.main(kd_flags(tiny_models[family], data, out, **experiment, **flags))


@pytest.mark.parametrize(
    "objective",
    [
        "t5 logits",
        "gpt2 attention_relation",
        *slow("t5 nll", "t5 hidden", "gpt2 nll", "gpt2 logits"),
    ],
)
def test_accumulation_changes_nothing(tiny_models, tmp_path, updates, objective):
    """8 × 1, 4 × 2 and 1 × 8 rows are one update: equal gradients, weights and losses, also of a short last window."""
    data = write(tmp_path / "d.json", train=[*UNEQUAL, *(text + " The dog." for text in UNEQUAL[:4])])
    runs = {}
    for micro in (8, 2, 1):
        updates.clear()
        train_accumulated(tiny_models, data, tmp_path / str(micro), objective, micro)
        runs[micro] = list(updates)
    assert [len(run) for run in runs.values()] == [2, 2, 2]
    assert len({tuple(update.rate for update in run) for run in runs.values()}) == 1
    for micro in (2, 1):
        for ours, theirs in zip(runs[micro], runs[8], strict=True):
            assert theirs.gradient.norm() > 1e-3
            torch.testing.assert_close(ours.gradient, theirs.gradient, rtol=1e-4, atol=2e-6)
            torch.testing.assert_close(ours.weights, theirs.weights, rtol=1e-4, atol=2e-6)
        for ours, theirs in zip(*(rows(tmp_path / str(m), "train_losses.csv") for m in (micro, 8)), strict=True):
            assert float(ours["loss"]) == pytest.approx(float(theirs["loss"]), rel=1e-5)


def test_gradient_is_that_of_the_mean_over_a_window_s_tokens_and_of_nothing_else(tiny_models, tmp_path, updates):
    """What the stock model returns as loss for the window's rows as one batch. At this rate the weights stay as they
    are, so that a gradient left over from a short window, or from the epoch before, would show."""
    folder = tiny_models["t5"]["student"]
    data = write(tmp_path / "d.json", train=UNEQUAL)
    flags = {"batch_size": 4, "max_gpu_batch_size": 1, "learning_rate": 1e-12, "save_checkpoint_every_n_steps": 2}
    ft_main.main(ft_flags(folder, data, tmp_path / "out", epochs=2, **flags))
    preprocessor = Preprocessor(load_tokenizer(folder), True, 32, 8)
    split = TokenizedDatasets({"train": {"text": UNEQUAL, "target": UNEQUAL}}, preprocessor).split("train")
    orders = [epoch_order(len(split), seed=42, epoch=epoch) for epoch in range(2)]
    windows = [order[start : start + 4] for order in orders for start in (0, 4)]
    stock = load_model(folder)
    for window, update in zip(windows, updates, strict=True):
        batch = collate(preprocessor, split, window)
        stock.zero_grad()
        stock(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
        expected = torch.cat([parameter.grad.flatten() for parameter in stock.parameters()])
        torch.testing.assert_close(update.gradient, expected, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------------------------------- epochs and rates


def test_every_row_once_in_an_epoch_and_every_window_is_an_update(model, tmp_path, updates, seen_rows):
    data = write(tmp_path / "d.json", train=9)
    ft_main.main(ft_flags(model, data, tmp_path / "out", epochs=3, batch_size=4, max_gpu_batch_size=2))
    assert [len(rows) for _, rows in seen_rows] == [2, 2, 2, 2, 1] * 3
    trained = [[row for _, rows in seen_rows[i : i + 5] for row in rows] for i in (0, 5, 10)]
    assert all(sorted(order) == list(range(9)) for order in trained)
    assert trained[0] != trained[1] != trained[2]
    assert [update.steps_before for update in updates] == list(range(9))  # three windows an epoch, the first included
    assert all(not torch.equal(a.weights, b.weights) for a, b in zip(updates, updates[1:], strict=False))
    assert [update.rate for update in updates] == pytest.approx([0.01 * (9 - k) / 9 for k in range(9)])


def tokenized(model: str, path: str | Path, split: str = "train") -> TokenizedSplit:
    kind = is_encoder_decoder(load_config(model))
    lengths = TINY["max_input_length"], TINY["max_labels_length"]
    preprocessor = Preprocessor(load_tokenizer(model), kind, *lengths, task_prompt="summarize:")
    return TokenizedDatasets(read_datasets(str(path)), preprocessor).split(split)


def order_of(model: str, path: str, split: str, epoch: int, batch_size: int = 4) -> list[int]:
    """The rows of an epoch, those of each update by their lengths."""
    lengths = tokenized(model, path, split).lengths
    order = epoch_order(len(lengths), seed=42, epoch=epoch)
    return [row for update in chunks(order, batch_size) for row in sorted(update.tolist(), key=lambda i: lengths[i])]


def test_rotation(model, tmp_path, rotation_path, seen_rows):
    flags = {"epochs": 4, "batch_size": 4, "max_gpu_batch_size": 4, "test_every_n_epochs": None}
    ft_main.main(ft_flags(model, rotation_path, tmp_path / "out", **flags))
    in_epochs = [split for split, _ in seen_rows]
    assert in_epochs == ["train_0"] * 3 + ["train_1"] * 3 + ["train_2"] * 2 + ["train_0"] * 3
    start = 0
    for epoch, (split, steps) in enumerate((("train_0", 3), ("train_1", 3), ("train_2", 2), ("train_0", 3))):
        trained = [row for _, rows in seen_rows[start : start + steps] for row in rows]
        assert trained == order_of(model, rotation_path, split, epoch)
        start += steps


def test_the_rate_falls_over_all_nominal_updates(dropout_models, tmp_path, updates):
    """--epochs shapes the schedule, --stop_training_after_n_epochs ends it early; 110 updates warm up for 10."""
    data = write(tmp_path / "d.json", train_0=6, train_1=4)
    flags = {"experiment_config_key": "finetuning", "batch_size": 1, "epochs": 22, "stop_training_after_n_epochs": 3}
    kd_main.main(kd_flags(dropout_models["gpt2"], data, tmp_path / "out", **flags))
    expected = [0.01 * k / 10 for k in range(10)] + [0.01 * (110 - k) / 100 for k in range(10, 16)]
    assert [update.rate for update in updates] == pytest.approx(expected)
    assert float(rows(tmp_path / "out", "train_losses.csv")[-1]["learning_rate"]) == pytest.approx(0.01 * 94 / 100)


def test_the_closing_fine_tuning_learns_until_its_last_update(dropout_models, tmp_path, updates):
    """The rate falls over the nominal updates of the distillation and those of the closing phase, of another size."""
    data = write(tmp_path / "d.json", train_0=8, train_1=4, ft=9)
    flags = {"epochs": 3, "ft_steps_at_end": 2, "save_checkpoint_every_n_steps": 100}
    kd_main.main(kd_flags(dropout_models["gpt2"], data, tmp_path / "out", **flags))
    n_distilled, n_closing = 2 + 1 + 2, 2 * 3
    rates = [update.rate for update in updates]
    assert rates == pytest.approx([0.01 * (11 - k) / 11 for k in range(n_distilled + n_closing)])
    assert rates[n_distilled] == pytest.approx(0.01 * 6 / 11)
    assert rates[-1] == pytest.approx(0.01 / 11)


def test_epochs_beyond_the_schedule_are_refused(dropout_models, tmp_path):
    """They would run at a rate of 0."""
    data = write(tmp_path / "d.json", train=4)
    with pytest.raises(UserError, match="--stop_training_after_n_epochs 3: is more than --epochs 2"):
        kd_main.main(kd_flags(dropout_models["gpt2"], data, tmp_path / "out", stop_training_after_n_epochs=3))


# ------------------------------------------------------------------------------------------- what an update is made of


def of_unequal_lengths(n: int) -> list[str]:
    """Texts of 1 to 25 words, most of them short, in an order of length."""
    return ["a" + " cat" * round(24 * (i / n) ** 3) + f" {i}" for i in range(n)]


def test_an_update_s_rows_have_nothing_to_do_with_their_lengths(model, tmp_path, seen_rows, updates):
    """Between updates, lengths vary as between random samples; sorted, updates would differ as much as rows do."""
    n, size = 400, 8
    texts = of_unequal_lengths(n)
    data = write(tmp_path / "d.json", train=texts)
    flags = {"batch_size": size, "max_gpu_batch_size": 4, "epochs": 4, "learning_rate": 1e-9}
    ft_main.main(ft_flags(model, data, tmp_path / "out", save_checkpoint_every_n_steps=1000, **flags))
    lengths = np.array([len(text.split()) for text in texts])
    assert len(seen_rows) == 4 * n // 4 and len(updates) == 4 * n // size
    trained = [[row for _, rows in seen_rows[i : i + 2] for row in rows] for i in range(0, len(seen_rows), 2)]
    means = np.array([lengths[rows].mean() for rows in trained])
    # Of random samples without replacement: var / size * (n - size) / (n - 1); of 200 the estimate is 10 % off.
    expected = lengths.var() / size * (n - size) / (n - 1)
    assert 0.65 < means.var() / expected < 1.45
    assert 0.65 < np.mean([lengths[rows].var(ddof=1) for rows in trained]) / lengths.var() < 1.45


@pytest.mark.parametrize(
    ("family", "loss"),
    [
        ("t5", "attention_relation"),
        ("gpt2", "forward"),
        *slow(("t5", "logits"), ("t5", "forward"), ("t5", "hidden")),
        *slow(("gpt2", "logits"), ("gpt2", "attention_relation"), ("gpt2", "hidden")),
    ],
)
def test_an_update_is_the_same_whatever_is_computed_at_once(tiny_models, tmp_path, updates, monkeypatch, family, loss):
    """However rows are cut: into micro-batches by --max_gpu_batch_size, and those into passes by length. Rows and
    gradients are the same, those of short last updates included."""
    texts = of_unequal_lengths(19)
    data = write(tmp_path / "d.json", train=texts)
    experiment = write_experiment(tmp_path / "e.yaml", {f"{loss}_weight": 1.0})
    runs = {}
    for micro, pass_tokens in ((8, 10**6), (8, 0), (4, 3), (1, 256)):
        updates.clear()
        monkeypatch.setattr(forward, "_cost_of_pass", lambda *_, on_cpu, cost=pass_tokens: cost)
        flags = {"batch_size": 8, "max_gpu_batch_size": micro, "epochs": 1, "learning_rate": 1e-9, **experiment}
        flags |= {"save_checkpoint_every_n_steps": 100, "max_labels_length": 12}
        kd_main.main(kd_flags(tiny_models[family], data, tmp_path / f"{micro}_{pass_tokens}", **flags))
        runs[micro, pass_tokens] = [update.gradient for update in updates]
    whole = runs[8, 10**6]
    assert len(whole) == 3 and all(gradient.norm() > 1e-4 for gradient in whole)
    for gradients in runs.values():
        for ours, theirs in zip(gradients, whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6)


# ------------------------------------------------------------------------------------------------- rhythm and patience


def test_evaluation_rhythm(model, tmp_path, scripted):
    """5 micro-batches an epoch: 0.55 of them are 2."""
    scripted(*map(float, range(9)))
    data = write(tmp_path / "d.json", train=10, dev=2, test=2)
    flags = {"epochs": 3, "batch_size": 2, "max_gpu_batch_size": 2, "test_every_n_epochs": 2}
    ft_main.main(ft_flags(model, data, tmp_path / "out", **flags))
    dev = [("dev", epoch, step) for epoch in range(3) for step in (1, 3, 4)]
    assert places(tmp_path / "out") == [*dev[:6], ("test", 1, 4), *dev[6:], ("test", -1, -1)]
    generations = read(tmp_path / "out" / "eval_generations.json")
    assert list(generations) == [f"{split}__epoch{e}__step{s}" for split, e, s in places(tmp_path / "out")]
    losses = [(int(row["epoch"]), int(row["step"])) for row in rows(tmp_path / "out", "train_losses.csv")]
    assert losses == [(epoch, step) for _, epoch, step in dev]


def test_an_evaluation_inside_a_window_waits_for_its_update(model, tmp_path, scripted):
    scripted(*map(float, range(4)))
    data = write(tmp_path / "d.json", train=10, dev=2)
    flags = {"epochs": 1, "batch_size": 4, "max_gpu_batch_size": 1, "save_checkpoint_every_n_steps": 3}
    ft_main.main(ft_flags(model, data, tmp_path / "out", **flags))
    assert places(tmp_path / "out") == [("dev", 0, 3), ("dev", 0, 7), ("dev", 0, 9)]


def test_rows_of_losses_between_evaluations(model, tmp_path):
    """9 micro-batches an epoch in updates of two, the last one of one; a row is the mean since the row before."""
    data = write(tmp_path / "d.json", train=18)

    def losses(every: int | None, evaluations: int) -> dict[tuple[int, int], float]:
        out, flags = tmp_path / f"{every}_{evaluations}", {"learning_rate": 1e-9, "log_every_n_steps": every}
        ft_main.main(ft_flags(model, data, out, epochs=2, save_checkpoint_every_n_steps=evaluations, **flags))
        return {(int(row["epoch"]), int(row["step"])): float(row["loss"]) for row in rows(out, "train_losses.csv")}

    each = losses(1, 100)
    assert list(each) == [(epoch, step) for epoch in (0, 1) for step in (1, 3, 5, 7, 8)]
    epoch_0 = list(each.values())[:5]
    found = losses(3, 100)
    assert list(found) == [(epoch, step) for epoch in (0, 1) for step in (3, 5, 8)]  # inside an update: after it
    assert [found[0, step] for step in (3, 5, 8)] == pytest.approx(
        [np.mean(epoch_0[:2]), epoch_0[2], np.mean(epoch_0[3:])]
    )
    evaluated = losses(None, 4)
    assert list(evaluated) == [(epoch, step) for epoch in (0, 1) for step in (3, 7, 8)]
    assert losses(4, 4) == evaluated  # an evaluation's row is not written twice


def test_an_evaluation_is_a_line_and_the_end_a_table(model, tmp_path, scripted, capsys):
    scripted(3.0, 1.5, 41.25)
    data = write(tmp_path / "d.json", train=4, dev=2, test=2)
    flags = {"epochs": 3, "test_every_n_epochs": 2, "save_checkpoint_every_n_steps": 100}
    command = ft_flags(model, data, tmp_path / "out", **flags)
    ft_main.main(command)
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("warning")]
    assert lines[1:6] == [
        "epoch 0, step 1: dev sacrebleu 3.00 (new best) nll 3.000",
        "epoch 1, step 1: dev sacrebleu 1.50 (best so far: 3.00 at epoch 0, step 1) nll 1.500",
        "epoch 1, step 1: test sacrebleu 50.00 nll 50.000",
        "epoch 2, step 1: dev sacrebleu 41.25 (new best) nll 41.250",
        "best checkpoint: test sacrebleu 50.00 nll 50.000",
    ]
    table = [
        "",
        "scores of the best checkpoint (epoch 2, step 1)",
        "                dev      test",
        "sacrebleu     41.25     50.00",
        "nll          41.250    50.000",
        "ppl           0.000     0.000",
        "",
        f"model        {tmp_path / 'out' / 'model'}",
        f"scores       {tmp_path / 'out' / 'eval_scores.csv'}",
        f"losses       {tmp_path / 'out' / 'train_losses.csv'}",
        f"predictions  {tmp_path / 'out' / 'eval_generations.json'}",
    ]
    assert lines[6:] == table
    ft_main.main(command)
    assert capsys.readouterr().out.splitlines() == table


def test_the_table_of_a_run_without_dev_or_test(model, tmp_path, capsys):
    ft_main.main(ft_flags(model, write(tmp_path / "d.json", train=4), tmp_path / "neither", epochs=1))
    assert "scores of the" not in capsys.readouterr().out
    data = write(tmp_path / "d.json", train=4, test=2)
    ft_main.main(ft_flags(model, data, tmp_path / "test", epochs=1))
    assert "scores of the last weights\n               test\nsacrebleu" in capsys.readouterr().out


def test_patience_ends_distillation_and_the_closing_fine_tuning_has_its_own(dropout_models, tmp_path, scripted):
    scripted(5.0, 1.0, 1.0, 1.0, 6.0, 2.0, 2.0, 9.0)
    data = write(tmp_path / "d.json", train=4, ft=3, dev=2)
    flags = {"epochs": 9, "n_patience_epochs": 2, "ft_steps_at_end": 9, "save_checkpoint_every_n_steps": 100}
    kd_main.main(kd_flags(dropout_models["gpt2"], data, tmp_path / "out", **flags))
    phases = [(int(row["phase"]), int(row["epoch"])) for row in rows(tmp_path / "out", "train_losses.csv")]
    # Best at epoch 0; 1 and 2 are no better. Then 3 is worse too, but 4 is the best of all; 5 and 6 are worse.
    assert phases == [(0, 0), (0, 1), (0, 2), (1, 3), (1, 4), (1, 5), (1, 6)]
    assert "epoch4__step1__score6_000__model.pt" in names(tmp_path / "out")


def test_patience_counts_epochs_not_evaluations(model, tmp_path, scripted):
    scripted(5.0, 1.0, 1.0, 6.0, 1.0, 1.0, 1.0, 1.0)  # two an epoch: the better one is the second of epoch 1
    data = write(tmp_path / "d.json", train=4, dev=2)
    flags = {"epochs": 9, "n_patience_epochs": 2, "batch_size": 2}
    ft_main.main(ft_flags(model, data, tmp_path / "out", **flags))
    assert [epoch for _, epoch, _ in places(tmp_path / "out")] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_patience_without_dev_means_nothing(model, tmp_path):
    data = write(tmp_path / "d.json", train=4)
    ft_main.main(ft_flags(model, data, tmp_path / "out", epochs=3, n_patience_epochs=1))
    assert [row["epoch"] for row in rows(tmp_path / "out", "train_losses.csv")] == ["0", "1", "2"]


# ------------------------------------------------------------------------------------------------- best, last and what


def test_closing_fine_tuning_starts_from_the_best(dropout_models, tmp_path, scripted, updates):
    """Weights, optimizer and scheduler of the best checkpoint, not of the last epoch."""
    scripted(1.0, 7.0, 2.0, 3.0, 4.0)
    data = write(tmp_path / "d.json", train=4, ft=4, dev=2)
    flags = {"epochs": 8, "stop_training_after_n_epochs": 3, "ft_steps_at_end": 2, "save_checkpoint_every_n_steps": 1}
    kd_main.main(kd_flags(dropout_models["gpt2"], data, tmp_path / "out", keep_checkpoint_after_test=True, **flags))
    assert [update.steps_before for update in updates] == [0, 1, 2, 2, 3]
    assert [update.rate for update in updates] == pytest.approx([0.01 * (10 - k) / 10 for k in (0, 1, 2, 2, 3)])
    assert torch.equal(updates[3].weights, updates[2].weights)  # the third update began where the best was saved
    assert not torch.equal(updates[3].gradient, updates[2].gradient)  # NLL on ft
    assert names(tmp_path / "out") >= {"epoch1__step1__score7_000", "epoch2__step1__score2_000__last"}


def test_the_best_is_tested_and_becomes_the_model(model, tmp_path, scripted):
    scripted(1.0, 41.25, 2.0)
    data = write(tmp_path / "d.json", train=4, dev=2, test=2)
    flags = {"epochs": 3, "keep_checkpoint_after_test": True, "save_checkpoint_every_n_steps": 100}
    ft_main.main(ft_flags(model, data, tmp_path / "out", **flags))
    best, last = tmp_path / "out" / "epoch1__step1__score41_250", tmp_path / "out" / "epoch2__step1__score2_000__last"
    assert {name for name in names(tmp_path / "out") if name.startswith("epoch")} == {best.name, last.name}
    made = weights(tmp_path / "out" / "model")
    assert all(torch.equal(value, made[name]) for name, value in weights(best).items())
    assert not all(torch.equal(value, made[name]) for name, value in weights(last).items())


@pytest.mark.parametrize(
    ("metric", "best"), [("sacrebleu", "epoch1__step1__score7_000"), ("nll", "epoch2__step1__score1_000")]
)
def test_which_is_best(model, tmp_path, scripted, metric, best):
    """Without a flag for the direction."""
    scripted(3.0, 7.0, 1.0, 7.0, 1.0)  # of equal scores the first
    data = write(tmp_path / "d.json", train=4, dev=2)
    flags = {"metric_for_best_model": metric, "epochs": 5}
    ft_main.main(ft_flags(model, data, tmp_path / "out", save_checkpoint_every_n_steps=100, **flags))
    assert f"{best}__model.pt" in names(tmp_path / "out")


def test_a_score_that_is_no_number_is_never_the_best(model, tmp_path, scripted):
    scripted(float("nan"), float("inf"), 2.0)
    data = write(tmp_path / "d.json", train=4, dev=2)
    ft_main.main(ft_flags(model, data, tmp_path / "out", epochs=3, save_checkpoint_every_n_steps=100))
    assert "epoch2__step1__score2_000__model.pt" in names(tmp_path / "out")


def test_without_dev_the_last_weights_count_as_the_best(dropout_models, tmp_path, capsys):
    data = write(tmp_path / "d.json", train=4, ft=4, test=2)
    flags = {"epochs": 8, "stop_training_after_n_epochs": 2, "ft_steps_at_end": 1, "keep_checkpoint_after_test": True}
    kd_main.main(kd_flags(dropout_models["gpt2"], data, tmp_path / "out", **flags))
    assert "no split 'dev'" in capsys.readouterr().out
    assert places(tmp_path / "out") == [("test", -1, -1)]
    (last,) = (name for name in names(tmp_path / "out") if name.startswith("epoch"))
    assert last == "epoch1__step1__last"
    # The closing fine-tuning went on from there.
    of_last, made = weights(tmp_path / "out" / last), weights(tmp_path / "out" / "model")
    assert any(not torch.equal(value, made[name]) for name, value in of_last.items())


def test_without_test_there_are_no_test_rows(model, tmp_path):
    data = write(tmp_path / "d.json", train=4, dev=2)
    scores = ft_main.main(ft_flags(model, data, tmp_path / "out", epochs=1, test_every_n_epochs=1))
    assert scores == {}
    assert {split for split, _, _ in places(tmp_path / "out")} == {"dev"}
    assert read(tmp_path / "out" / "run.json")["status"] == "finished"


def test_only_test(model, tmp_path):
    """--do_train False leaves one row and the model as it was."""
    data = write(tmp_path / "d.json", test=3)
    out = tmp_path / "out"
    scores = ft_main.main(ft_flags(model, data, out, do_train=False))
    assert places(out) == [("test", -1, -1)]
    assert names(out) == {"eval_scores.csv", "eval_generations.json", "model", "run.json"}
    assert all(torch.equal(value, weights(out / "model")[name]) for name, value in weights(Path(model)).items())
    assert read(out / "run.json")["scores"] == scores


def test_only_test_needs_a_test_split(model, tmp_path):
    data = write(tmp_path / "d.json", train=3, dev=2)
    with pytest.raises(UserError, match="there is none"):
        ft_main.main(ft_flags(model, data, tmp_path / "out", do_train=False))
    assert not (tmp_path / "out").exists()


def test_equal_runs_leave_equal_bytes(dropout_models, tmp_path, rotation_path):
    """Dropout included; in run.json and the model card the paths differ."""
    for name, seed in (("a", 42), ("b", 42), ("c", 43)):
        flags = {"metrics": ("rouge", "chrf"), "ft_steps_at_end": 1, "epochs": 3, "stop_training_after_n_epochs": 2}
        kd_main.main(kd_flags(dropout_models["gpt2"], rotation_path, tmp_path / name, seed=seed, **flags))
    ours, equal, other = (result(tmp_path / name) for name in ("a", "b", "c"))
    assert ours == equal
    assert {"eval_scores.csv", "eval_generations.json", "train_losses.csv", "model/model.safetensors"} <= ours.keys()
    assert ours["model/model.safetensors"] != other["model/model.safetensors"]


# ----------------------------------------------------------------------------------------------------- non-finite loss


def fail_at(monkeypatch, call: int) -> None:
    calls = iter(range(1_000_000))
    compute = one_update.distillation_loss

    def broken(*arguments, **options):
        loss, terms = compute(*arguments, **options)
        return (loss * float("nan") if next(calls) == call else loss), terms

    monkeypatch.setattr(one_update, "distillation_loss", broken)


def test_a_non_finite_loss_stops_with_the_rows_and_the_last_good_checkpoint(
    model, tmp_path, rotation_path, monkeypatch, capsys
):
    fail_at(monkeypatch, 7)  # epoch 0 has 5 micro-batches of train_0, epoch 1 began with two of train_1
    out = tmp_path / "out"
    assert run_script(ft_main.main, ft_flags(model, rotation_path, out, save_checkpoint_every_n_steps=1)) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    expected = order_of(model, rotation_path, "train_1", 1)[4:6]
    assert f"non-finite loss at epoch 1, step 2, rows {expected} of 'train_1'" in line
    (best,) = out.glob("epoch0__step4__score*")
    assert str(best) in line
    assert read(out / "run.json")["status"] == "unfinished"


def test_a_non_finite_loss_before_any_checkpoint(model, tmp_path, monkeypatch):
    fail_at(monkeypatch, 0)
    with pytest.raises(
        UserError, match="epoch 0, step 0, rows .* of 'train', forward .*; last good checkpoint: none yet"
    ):
        ft_main.main(ft_flags(model, write(tmp_path / "d.json", train=4), tmp_path / "out"))


def test_a_rate_that_is_much_too_high(model, tmp_path):
    data = write(tmp_path / "d.json", train=8, dev=2)
    with pytest.raises(UserError, match="non-finite loss at epoch 0"):
        ft_main.main(ft_flags(model, data, tmp_path / "out", learning_rate=1e30, save_checkpoint_every_n_steps=100))


@pytest.mark.parametrize("learning", [True, False], ids=["learning", "measuring scales"])
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_a_non_finite_loss_of_a_distillation_names_its_terms(dropout_models, tmp_path, monkeypatch, family, learning):
    """Also where the student writes the labels, and where scales are measured, of which the rows are named too."""
    data = write(tmp_path / "d.json", train=8, dev=2)
    loss = {"logits_weight": 0.5, "forward_weight": 0.5, "generate_labels_weight": 1.0, "loss_scale": not learning}
    experiment = write_experiment(tmp_path / "e.yaml", loss)
    fail_at(monkeypatch, 3)
    flags = kd_flags(dropout_models[family], data, tmp_path / "out", **experiment)
    # Scales are measured on the epoch's first rows, two by two; an update's are sorted before they are cut.
    order = order_of(dropout_models[family]["student"], str(data), "train", 0, batch_size=4 if learning else 2)
    step = 2 if learning else 0  # the second micro-batch of the second window
    rows_ = rf"({order[6]}, {order[7]}|{order[7]}, {order[6]})"
    place = rf"^non-finite loss at epoch 0, step {step}, rows \[{rows_}\] of 'train', "
    terms = r"(logits [\d.]+, forward [\d.]+|forward [\d.]+, logits [\d.]+); last good checkpoint: "
    with pytest.raises(UserError, match=place + terms):
        kd_main.main(flags)


def test_a_non_finite_loss_with_a_stored_teacher(dropout_models, tmp_path, monkeypatch):
    student = dropout_models["t5"]["student"]
    n_labels = len(load_tokenizer(student)("cat.")["input_ids"])
    rows_ = {"text": ["a"] * 4, "target": ["cat."] * 4}
    rows_ |= {"tokens": [[[5]] * n_labels] * 4, "logits": [[[0.0]] * n_labels] * 4}
    (tmp_path / "d.json").write_text(json.dumps({"train": rows_}))
    fail_at(monkeypatch, 1)
    flags = {**TINY, "student_name": student, "dataset_path": tmp_path / "d.json", "output_dir": tmp_path / "out"}
    said = r"^non-finite loss at epoch 0, step 0, rows \[\d, \d\] of 'train', logits [\d.]+; last good checkpoint: none"
    with pytest.raises(UserError, match=said):
        kd_dataset_with_logits_main.main(argv({**flags, "experiment_config_key": "logits_kd"}))


@pytest.mark.parametrize("split", ["dev", "test"])
def test_weights_that_an_update_makes_infinite(model, tmp_path, split):
    """The only one of the run: no loss comes after it, but an evaluation."""
    data = write(tmp_path / "d.json", train=2, **{split: 2})
    said = f"^the model computes NaN or infinity at epoch ., step ., evaluation on '{split}'; last good checkpoint: "
    with pytest.raises(UserError, match=said):
        ft_main.main(ft_flags(model, data, tmp_path / "out", learning_rate=1e38, epochs=1))
    assert read(tmp_path / "out" / "run.json")["status"] == "unfinished"


def test_a_student_without_numbers_that_should_write_its_labels(dropout_models, tmp_path):
    data = write(tmp_path / "d.json", train=4)
    experiment = write_experiment(tmp_path / "e.yaml", {"logits_weight": 1.0, "generate_labels_weight": 1.0})
    flags = {"learning_rate": 1e38, "batch_size": 2, "save_checkpoint_every_n_steps": 100, **experiment}
    said = r"^the model computes NaN or infinity at epoch 0, step 1, rows \[\d, \d\] of 'train'; last good "
    with pytest.raises(UserError, match=said):
        kd_main.main(kd_flags(dropout_models["gpt2"], data, tmp_path / "out", **flags))


# ------------------------------------------------------------------------------------------------------------ gradient


def test_a_gradient_that_is_not_finite_stops_before_it_reaches_the_weights(model, tmp_path, monkeypatch, updates):
    """The loss may be finite all the same. The message has the rows of the whole update."""
    norms = iter([1.0, float("inf")])
    monkeypatch.setattr(one_update, "get_total_norm", lambda gradients: torch.tensor(next(norms)))
    flags = ft_flags(model, write(tmp_path / "d.json", train=8), tmp_path / "out", batch_size=4, max_gpu_batch_size=2)
    said = r"^non-finite gradient norm at epoch 0, step 2, rows \[(\d, ){3}\d\] of 'train'; "
    with pytest.raises(UserError, match=said):
        ft_main.main(flags)
    assert len(updates) == 1


@pytest.mark.parametrize("micro", [1, 4])
def test_a_gradient_is_clipped_as_a_whole(model, tmp_path, updates, micro):
    """To the norm that the flag says, over all micro-batches of the update; a smaller one stays as it is."""
    data = write(tmp_path / "d.json", train=8)
    found = {}
    for limit in (None, 0.01, 1e6):
        updates.clear()
        flags = {} if limit is None else {"clip_grad_norm": limit}
        flags |= {"batch_size": 4, "max_gpu_batch_size": micro, "learning_rate": 1e-12}
        out = tmp_path / str(limit)
        ft_main.main(ft_flags(model, data, out, epochs=1, save_checkpoint_every_n_steps=100, **flags))
        (row,) = rows(out, "train_losses.csv")
        found[limit] = [update.gradient for update in updates], float(row["gradient_norm"])
    (plain, norm), (clipped, same_norm), (unclipped, _) = found.values()
    assert norm == pytest.approx(sum(float(each.norm()) for each in plain) / 2, rel=1e-5)
    assert same_norm == pytest.approx(norm, rel=1e-6)
    for before, after, large in zip(plain, clipped, unclipped, strict=True):
        assert float(after.norm()) == pytest.approx(0.01, rel=1e-3)
        torch.testing.assert_close(after, before * (0.01 / before.norm()), rtol=1e-3, atol=1e-7)
        torch.testing.assert_close(large, before)


# ----------------------------------------------------------------------------------------------------- checkpoint_path


@pytest.fixture
def former(model, tmp_path, scripted) -> Path:
    """A finished run of another folder: best at epoch 1, last after epoch 2."""
    scripted(1.0, 7.0, 3.0)
    data = write(tmp_path / "d.json", train=4, dev=2, test=2)
    flags = {"epochs": 3, "batch_size": 2, "keep_checkpoint_after_test": True, "save_checkpoint_every_n_steps": 100}
    ft_main.main(ft_flags(model, data, tmp_path / "former", **flags))
    return tmp_path / "former"


def many_updates(model, tmp_path, **flags) -> list[str]:
    """A schedule of 120 updates, of which the first four are run."""
    data = write(tmp_path / "two.json", train=2)
    named = {"experiment_config_key": "finetuning", "epochs": 60, "stop_training_after_n_epochs": 2}
    return kd_flags({"student": model, "teacher": "none"}, data, tmp_path / "out", batch_size=1, **named, **flags)


@pytest.mark.parametrize("kind", ["pt", "model", "safetensors"])
def test_from_weights_there_is_no_warm_up(model, tmp_path, former, updates, kind):
    if kind == "pt":
        torch.save(load_model(str(former / "model")).state_dict(), tmp_path / "w.pt")
    path = {"pt": tmp_path / "w.pt", "model": former / "model", "safetensors": former / "model" / "model.safetensors"}
    updates.clear()
    kd_main.main(many_updates(model, tmp_path, checkpoint_path=path[kind]))
    assert [update.rate for update in updates[:3]] == pytest.approx([0.01, 0.01 * 119 / 120, 0.01 * 118 / 120])
    loaded = load_model(str(former / "model"))
    assert torch.equal(updates[0].weights, torch.cat([each.detach().flatten() for each in loaded.parameters()]))
    assert updates[0].steps_before == 0


def test_from_a_state_dict_of_the_student_there_is_no_warm_up(model, tmp_path, former, updates):
    updates.clear()
    kd_main.main(many_updates(model, tmp_path, student_state_dict_path=former / "model" / "model.safetensors"))
    assert [update.rate for update in updates[:2]] == pytest.approx([0.01, 0.01 * 119 / 120])


def test_the_launcher_s_environment_divides_no_gradient(model, tmp_path, updates, monkeypatch):
    data = write(tmp_path / "d.json", train=4)
    for name, steps in (("plain", None), ("launched", "4")):
        if steps:
            monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
        ft_main.main(ft_flags(model, data, tmp_path / name, epochs=1))
    plain, launched = updates
    assert plain.gradient.norm() > 1e-3
    assert torch.equal(plain.gradient, launched.gradient)


def test_without_weights_there_is_a_warm_up(model, tmp_path, updates):
    kd_main.main(many_updates(model, tmp_path))
    assert [update.rate for update in updates[:3]] == pytest.approx([0.0, 0.01 / 20, 0.02 / 20])


def test_a_folder_with_an_optimizer_goes_on_in_another_folder(model, tmp_path, former, scripted):
    """Interrupted in one folder, continued in another: the same end as without interruption."""
    scripted(3.0)
    (best,) = former.glob("epoch1__step1*")
    flags = {"epochs": 3, "batch_size": 2, "keep_checkpoint_after_test": True, "save_checkpoint_every_n_steps": 100}
    ft_main.main(ft_flags(model, tmp_path / "d.json", tmp_path / "out", checkpoint_path=best, **flags))
    assert places(tmp_path / "out") == [("dev", 2, 1), ("test", -1, -1)]
    assert {name for name in names(tmp_path / "out") if name.startswith("epoch")} == {
        "epoch1__step1__score7_000", "epoch2__step1__score3_000__last"
    }  # fmt: skip
    for folder in ("model", "epoch1__step1__score7_000", "epoch2__step1__score3_000__last"):
        ours, theirs = weights(tmp_path / "out" / folder), weights(former / folder)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    generations = read(tmp_path / "out" / "eval_generations.json")
    assert list(generations) == ["dev__epoch2__step1", "test__epoch-1__step-1"]


def test_a_checkpoint_that_is_not_the_best_of_another_run_starts_without(model, tmp_path, former, scripted, capsys):
    scripted(2.0)
    (last,) = former.glob("*__last")
    flags = {"epochs": 4, "batch_size": 2, "save_checkpoint_every_n_steps": 100, "checkpoint_path": last}
    ft_main.main(ft_flags(model, tmp_path / "d.json", tmp_path / "out", **flags))
    assert "the best is chosen anew" in capsys.readouterr().out
    assert "epoch3__step1__score2_000__model.pt" in names(tmp_path / "out")


def test_a_position_that_the_run_has_not(model, tmp_path, former):
    (best,) = former.glob("epoch1__step1*")
    data = write(tmp_path / "small.json", train=2, dev=2)
    with pytest.raises(UserError, match="at epoch 1, step 2 of phase 0, a position this run never reaches"):
        ft_main.main(ft_flags(model, data, tmp_path / "out", checkpoint_path=best))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model(dropout_models, tmp_path, former):
    (best,) = former.glob("epoch1__step1*")
    flags = ft_flags(dropout_models["gpt2"]["teacher"], tmp_path / "d.json", tmp_path / "out", checkpoint_path=best)
    with pytest.raises(UserError, match="not for .*gpt2_teacher"):
        ft_main.main(flags)
    assert not (tmp_path / "out").exists()


def test_only_test_with_a_checkpoint_folder(model, tmp_path, former):
    """Without training its optimizer does not matter."""
    (last,) = former.glob("*__last")
    ft_main.main(ft_flags(model, tmp_path / "d.json", tmp_path / "out", checkpoint_path=last, do_train=False))
    assert places(tmp_path / "out") == [("test", -1, -1)]
    ours, theirs = weights(tmp_path / "out" / "model"), weights(last)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


# ------------------------------------------------------------------------------------------ schedules, scales, targets


def learned(out: Path) -> list[str]:
    """What was learned before each evaluation."""
    return [row["learned"] for row in rows(out, "train_losses.csv")]


@pytest.mark.parametrize(
    ("schedule", "scores", "expected"),
    [  # three epochs of two evaluations each
        ({"change_every_n_epochs": 1, "keep_last": False}, (1, 2, 3, 4, 5, 6), "001100"),
        ({"change_every_n_evaluation_steps": 3}, (1, 2, 3, 4, 5, 6), "000111"),
        ({"change_no_improvements_for": 1, "keep_last": False}, (3, 2, 1, 4, 4, 5), "001001"),
        *slow(
            ({"change_every_n_epochs": 2}, (1, 2, 3, 4, 5, 6), "000011"),
            ({"change_every_n_evaluation_steps": 1, "keep_last": False}, (1, 2, 3, 4, 5, 6), "010101"),
            ({"change_no_improvements_for": 2}, (1, 1, 2, 2, 2, 3), "000001"),
        ),
    ],
)
def test_the_loss_changes_on_schedule(dropout_models, tmp_path, scripted, schedule, scores, expected):
    scripted(*map(float, scores))
    data = write(tmp_path / "d.json", train=8, dev=1)
    experiment = write_experiment(
        tmp_path / "e.yaml", {"logits_weight": 1.0}, {"forward_weight": 1.0}, schedule=schedule
    )
    kd_main.main(kd_flags(dropout_models["gpt2"], data, tmp_path / "out", epochs=3, **experiment))
    assert learned(tmp_path / "out") == [f"loss_{number}" for number in expected]
    for row in rows(tmp_path / "out", "train_losses.csv"):
        assert bool(row["logits"]) == (row["learned"] == "loss_0")
        assert bool(row["forward"]) == (row["learned"] == "loss_1")


def test_a_schedule_that_follows_dev_needs_one(dropout_models, tmp_path):
    data = write(tmp_path / "d.json", train=4)
    schedule = {"change_no_improvements_for": 2}
    losses = ({"logits_weight": 1.0}, {"forward_weight": 1.0})
    experiment = write_experiment(tmp_path / "e.yaml", *losses, schedule=schedule)
    with pytest.raises(UserError, match="follows the evaluations on 'dev'"):
        kd_main.main(kd_flags(dropout_models["gpt2"], data, tmp_path / "out", **experiment))


@pytest.fixture
def losses_seen(monkeypatch) -> list[dict]:
    """Entry, scales, loss and terms of every loss that is computed."""
    seen = []
    plain = one_update.distillation_loss

    def noted(student, teacher, batch, entry, window, scales, **options):
        loss, terms = plain(student, teacher, batch, entry, window, scales, **options)
        values = {term: float(value) for term, value in terms.items()}
        learns = torch.is_grad_enabled()
        seen.append({"entry": entry.name, "learns": learns, "scales": dict(scales), "loss": loss.item()} | values)
        return loss, terms

    monkeypatch.setattr(one_update, "distillation_loss", noted)
    return seen


SCALED = {"logits_weight": 0.5, "hidden_weight": 0.5, "kl_loss": True, "loss_scale": True}


def test_scales_are_one_over_the_means_before_training_and_anew_at_a_change(tiny_models, tmp_path, losses_seen):
    data = write(tmp_path / "d.json", train=6)
    experiment = write_experiment(
        tmp_path / "e.yaml", SCALED, {"logits_weight": 1.0, "loss_scale": True}, schedule={"change_every_n_epochs": 1}
    )
    kd_main.main(kd_flags(tiny_models["t5"], data, tmp_path / "out", epochs=3, batch_size=2, **experiment))
    groups = [(seen["entry"], seen["learns"]) for seen in losses_seen]
    first, second = ("loss_0", "loss_1")
    expected = [(first, False)] * 3 + [(first, True)] * 3 + [(second, False)] * 3 + [(second, True)] * 6
    assert groups == expected
    for start in (0, 6):
        measured, learning = losses_seen[start : start + 3], losses_seen[start + 3]
        terms = ("logits", "hidden_enc", "hidden_dec") if start == 0 else ("logits",)
        assert all(seen["scales"] == {} for seen in measured)
        for term in terms:
            mean = sum(seen[term] for seen in measured) / 3
            assert learning["scales"][term] == pytest.approx(1 / max(mean, 0.025))
        halves = [learning[term] * learning["scales"][term] for term in terms]
        weighed = halves[0] if start else 0.5 * halves[0] + 0.5 * (halves[1] + halves[2]) / 2
        assert learning["loss"] == pytest.approx(weighed, rel=1e-5)


def test_a_scale_assumes_no_mean_below_the_floor(tiny_models, tmp_path, losses_seen):
    """A student that is its teacher has no loss to divide by."""
    data = write(tmp_path / "d.json", train=2)
    experiment = write_experiment(tmp_path / "e.yaml", {"logits_weight": 1.0, "loss_scale": True})
    twins = dict.fromkeys(("student", "teacher"), tiny_models["t5"]["student"])
    kd_main.main(kd_flags(twins, data, tmp_path / "out", epochs=1, **experiment))
    assert losses_seen[-1]["scales"] == {"logits": 40.0}


def test_scales_are_measured_on_a_hundred_batches_at_most(dropout_models, tmp_path, monkeypatch, losses_seen):
    monkeypatch.setattr(one_update, "SCALE_BATCHES", 3)
    assert one_update.SCALE_FLOOR == 0.025
    data = write(tmp_path / "d.json", train=12)
    experiment = write_experiment(tmp_path / "e.yaml", {"logits_weight": 1.0, "loss_scale": True})
    kd_main.main(kd_flags(dropout_models["gpt2"], data, tmp_path / "out", epochs=1, **experiment))
    assert sum(not seen["learns"] for seen in losses_seen) == 3


@pytest.fixture
def labels_learnt(monkeypatch) -> list[tuple[tuple[int, ...], torch.Tensor]]:
    """Rows and labels of every batch that a loss is computed on."""
    seen = []
    plain = one_update.distillation_loss

    def noted(student, teacher, batch, *rest, **options):
        seen.append((batch.rows, batch.labels.clone()))
        return plain(student, teacher, batch, *rest, **options)

    monkeypatch.setattr(one_update, "distillation_loss", noted)
    return seen


@pytest.mark.parametrize("family", ["gpt2", *slow("t5")])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_student_writes_its_share_of_the_labels(dropout_models, tmp_path, labels_learnt, family, share):
    data = write(tmp_path / "d.json", train=24)
    loss = {"logits_weight": 1.0, "generate_labels_weight": share}
    experiment = write_experiment(tmp_path / "e.yaml", loss)
    flags = {"epochs": 2, "max_gpu_batch_size": 2, "batch_size": 4, "learning_rate": 0.001}
    kd_main.main(kd_flags(dropout_models[family], data, tmp_path / "out", **flags, **experiment))
    split = tokenized(dropout_models[family]["student"], data)
    own = []
    for rows_, labels in labels_learnt:
        written = [row[row != -100].tolist() for row in labels]
        own.append(written != [split.labels[row].tolist() for row in rows_])
    places_ = [(epoch, step) for epoch in range(2) for step in range(12)]
    assert own == [student_writes(share, seed=42, epoch=epoch, step=step) for epoch, step in places_]
    assert sum(own) == {0.0: 0, 0.3: 5, 1.0: 24}[share]


def test_a_noisy_teacher_has_dropout_and_a_plain_one_not(dropout_models, tmp_path, monkeypatch):
    modes = []
    plain = LiveTeacher.__call__

    def noted(self, batch, entry):
        states = plain(self, batch, entry)
        modes.append((entry.name, self.model.training))
        return states

    monkeypatch.setattr(LiveTeacher, "__call__", noted)
    data = write(tmp_path / "d.json", train=4)
    losses = ({"logits_weight": 1.0, "dropout": True}, {"logits_weight": 1.0}, {"forward_weight": 1.0})
    experiment = write_experiment(tmp_path / "e.yaml", *losses, schedule={"change_every_n_epochs": 1})
    flags = kd_flags(dropout_models["t5"], data, tmp_path / "out", epochs=3, **experiment)
    kd_main.main(flags)
    assert modes == [("loss_0", True)] * 2 + [("loss_1", False)] * 2, "a loss without teacher terms asks no teacher"
    kd_main.main([*flags, "--output_dir", str(tmp_path / "again")])
    assert result(tmp_path / "out") == result(tmp_path / "again"), "noise follows from the seed"
