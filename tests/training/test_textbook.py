"""The scripts learn what a textbook's loop learns: stock models and losses, whole logits, AdamW, a linear schedule.

tests/textbook.py is given the rows of each update, and the texts that a student wrote, and knows nothing else of the
suite's training.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from conftest import tiny_sentences
from textbook import Pair, Textbook, padded
from tiny_runs import ft_flags, kd_flags, rows, weights

import ft_main
import kd_main
from src import kd_models_accelerator_multiple_loaders as stage
from src.config.constants import IGNORE_INDEX
from src.distillation.student_targets import student_writes
from src.models import forward
from src.training import setup
from src.training.engine import Trainer

N_ROWS, BATCH, RATE, DECAY, EPS = 40, 8, 0.003, 0.01, 1e-6
EPOCHS = 12  # of 5 updates each
PROMPT = "say:"
FLAGS = {
    "max_input_length": 64,
    "max_labels_length": 24,
    "task_prompt": PROMPT,
    "batch_size": BATCH,
    "max_gpu_batch_size": 4,
    "learning_rate": RATE,
    "weight_decay": DECAY,
    "optimizer_eps": EPS,
    "epochs": EPOCHS,
    "save_checkpoint_every_n_steps": 1.0,
    "metric_for_best_model": "chrf",
}


@dataclass
class Recorded:
    """The pairs of each update in the order of training, with the texts that the student is said to have written."""

    updates: list[list[Pair]] = field(default_factory=list)


@pytest.fixture
def recorded(monkeypatch) -> Recorded:
    """What the suite trains on, in float64, where sums in another order differ by less than 1e-5 after 60 updates."""
    seen, update = Recorded(), Trainer._update

    def record(self, phase, split, chosen):
        columns = self.data.datasets[split.name]
        seen.updates.append([(columns["text"][row], columns["target"][row]) for row in chosen])
        return update(self, phase, split, chosen)

    monkeypatch.setattr(Trainer, "_update", record)
    monkeypatch.setattr(forward, "_cost_of_pass", lambda *_, on_cpu: 8)  # so that a micro-batch takes several passes
    monkeypatch.setattr(setup, "load_model", in_float64(setup.load_model))
    return seen


def in_float64(load):
    return lambda *args, **kwargs: load(*args, **kwargs).double()


def textbook_of(student: str, teacher: str | None, n_updates: int) -> Textbook:
    return Textbook(
        student, teacher, n_updates=n_updates, prompt=PROMPT, learning_rate=RATE, eps=EPS, weight_decay=DECAY
    )


def write_data(path: Path) -> Path:
    """Translation of a kind: the words backwards. Texts of 1 to 3 sentences, so that lengths differ."""
    texts = list(dict.fromkeys(tiny_sentences(300, seed=5)))
    texts = [" ".join(texts[4 * i : 4 * i + 1 + i % 3]) for i in range(N_ROWS + 4)]
    pairs = {"text": texts, "target": [" ".join(reversed(text.split()[-6:])) for text in texts]}
    columns = {name: {key: values[part] for key, values in pairs.items()} for name, part in (
        ("train", slice(N_ROWS)), ("ft", slice(16)), ("dev", slice(N_ROWS, None)))}  # fmt: skip
    path.write_text(json.dumps(columns))
    return path


def check_equal(out: Path, textbook: Textbook, *, n_updates: int) -> None:
    """The exported weights are the textbook's; that they moved is seen beside it."""
    assert len(textbook.rates) == n_updates
    stock, moved = textbook.student.state_dict(), 0.0
    for name, value in weights(out / "model").items():
        assert (value.double() - stock[name]).abs().max() < 1e-5, name
        moved = max(moved, float(value.abs().max()))
    assert moved > 1e-2


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_fine_tuning(tiny_models, tmp_path, recorded, monkeypatch, family):
    folder, data = tiny_models[family]["student"], write_data(tmp_path / "d.json")
    keep_last(monkeypatch)
    ft_main.main(ft_flags(folder, data, tmp_path / "out", **FLAGS))
    textbook = textbook_of(folder, None, len(recorded.updates))
    for pairs in recorded.updates:
        textbook.update(pairs, distill=False)
    check_equal(tmp_path / "out", textbook, n_updates=60)


@pytest.mark.parametrize("co_teaching", [False, True], ids=["logits_kd", "co-teaching"])
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_distillation(tiny_models, tmp_path, recorded, monkeypatch, family, co_teaching):
    """Co-teaching: on half of the micro-batches a target is what the student wrote; here it is given."""
    models, data = tiny_models[family], write_data(tmp_path / "d.json")
    keep_last(monkeypatch)
    use_float64_teacher(monkeypatch)
    if co_teaching:
        give_student_texts(monkeypatch, recorded)
    key = "logits_kd_student_gens_co_teaching" if co_teaching else "logits_kd"
    kd_main.main(kd_flags(models, data, tmp_path / "out", experiment_config_key=key, **FLAGS))
    if co_teaching:
        n_written = sum(target.startswith("written ") for pairs in recorded.updates for _, target in pairs)
        assert 0.3 < n_written / sum(map(len, recorded.updates)) < 0.7
    textbook = textbook_of(models["student"], models["teacher"], len(recorded.updates))
    for pairs in recorded.updates:
        textbook.update(pairs, distill=True)
    check_equal(tmp_path / "out", textbook, n_updates=60)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_distillation_and_closing_fine_tuning(tiny_models, tmp_path, recorded, monkeypatch, family):
    """One decay over the nominal epochs of both; the closing phase goes on from the best checkpoint: weights, moments
    and the schedule's place."""
    models, data = tiny_models[family], write_data(tmp_path / "d.json")
    use_float64_teacher(monkeypatch)
    best_epoch, n_closing = 7, 2 * 2  # two epochs of two updates
    judge = Trainer._judge

    def script(self, _scores, phase):
        score = 100.0 if self.state.epoch == best_epoch else 200.0 + self.state.epoch if phase.from_best else 0.0
        judge(self, {"chrf": score, "nll": 1.0}, phase)

    monkeypatch.setattr(Trainer, "_judge", script)
    flags = {**FLAGS, "epochs": 13, "stop_training_after_n_epochs": 10, "ft_steps_at_end": 2}
    kd_main.main(kd_flags(models, data, tmp_path / "out", **flags))
    n_distilled = 10 * 5
    textbook = textbook_of(models["student"], models["teacher"], 13 * 5 + n_closing)
    for number, pairs in enumerate(recorded.updates[:n_distilled]):
        textbook.update(pairs, distill=True)
        if number + 1 == 5 * (best_epoch + 1):
            best = textbook.state()
    textbook.load(best)
    for pairs in recorded.updates[n_distilled:]:
        textbook.update(pairs, distill=False)
    check_equal(tmp_path / "out", textbook, n_updates=n_distilled + n_closing)
    logged = {int(row["epoch"]): float(row["learning_rate"]) for row in rows(tmp_path / "out", "train_losses.csv")}
    assert logged[9] == pytest.approx(RATE * (69 - 50) / 69)
    assert logged[11] == pytest.approx(RATE * (69 - 40 - n_closing) / 69)


def keep_last(monkeypatch) -> None:
    """The last checkpoint is the best."""
    judge = Trainer._judge
    rising = lambda self, _scores, phase: judge(self, {"chrf": float(self.state.epoch), "nll": 1.0}, phase)  # noqa: E731
    monkeypatch.setattr(Trainer, "_judge", rising)


def use_float64_teacher(monkeypatch) -> None:
    monkeypatch.setattr(stage, "load_model", in_float64(stage.load_model))


def give_student_texts(monkeypatch, recorded: Recorded) -> None:
    """In place of what a student samples: "written", and the first words of the row's text."""

    def with_student_targets(trainer, entry, batch, offset):
        step = trainer.state.steps_done + offset
        place = {"seed": trainer.config.seed, "epoch": trainer.state.epoch, "step": step}
        if not student_writes(entry.generate_labels_weight, **place):
            return batch
        texts = [trainer.data.datasets["train"]["text"][row] for row in batch.rows]
        written = {text: "written " + " ".join(text.split()[:3]) for text in texts}
        recorded.updates[-1] = [(text, written.get(text, target)) for text, target in recorded.updates[-1]]
        labels = trainer.evaluator.preprocessor.encode_labels(list(map(written.get, texts))).tokens
        return replace(batch, labels=padded([labels[i].tolist() for i in range(len(texts))], IGNORE_INDEX))

    monkeypatch.setattr(Trainer, "_with_student_targets", with_student_targets)
