"""Benchmark: implementations do the same work, failures are handled, and the table shows what was measured."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench
from benchmarks.speed import contestants, learning, models, pretrained, report, workers, writing
from benchmarks.speed.rows import ROWS, Learning, Lengths, Pretrained, Row, Shape, Writing
from src.config.console import say
from src.config.constants import IGNORE_INDEX
from src.distillation.capture import capture_states
from src.distillation.objectives import Window, distillation_loss
from src.distillation.teachers import LiveTeacher
from src.models.packed_linear import packed, product

CPU = torch.device("cpu")
SMALL, SMALLER = Shape(16, 32, 1, heads=2), Shape(8, 16, 1, heads=2)
UNEQUAL, EQUAL = Lengths(5, 9), Lengths(6, 6, spread=0)
KD = Learning("t5", 60, SMALLER, SMALL, 5, UNEQUAL, UNEQUAL, dropout=0.0)
WRITE = Writing(200, SMALL, 2, UNEQUAL, "sampling", targets=3, max_new_tokens=8, mean_length=4.0)


def loss_and_gradient(student, loss) -> tuple[torch.Tensor, torch.Tensor]:
    student.zero_grad()
    loss.backward()
    return loss.detach(), student.get_output_embeddings().weight.grad.clone()


def our_loss(student, teacher, work: Learning, batch):
    entry = learning.entry_of(work)
    taught = LiveTeacher(teacher, {})(batch, entry)
    window = Window(work.rows, learning.n_tokens(batch))
    return distillation_loss(capture_states(student, batch, entry, {}), taught, batch, entry, window)[0]


# ------------------------------------------------------------------------------------------- the same work, by anybody


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_saved_models_learn_and_write_the_same(tiny_models, tiny_dataset_path, family):
    work = Pretrained(*map(tiny_models[family].get, ("teacher", "student")), tiny_dataset_path, 4, 12, 6)
    ours, theirs = (make(work, CPU, None) for make in pretrained.PRETRAINED.values())
    assert ours() == theirs() == learning.n_tokens(pretrained.batch_of(work))
    for write in (make(replace(work, targets=3), CPU, None) for make in pretrained.PRETRAINED.values()):
        assert 4 * 3 <= write() <= 4 * 3 * 6


@pytest.mark.parametrize("family", ["t5", "gpt2", "llama"])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.0, 1.0)])
def test_the_textbook_learns_what_we_learn(family, weights):
    work = replace(KD, family=family, forward_weight=weights[0], logits_weight=weights[1])
    student, teacher = learning.students_and_teachers(work)
    batch = models.batch_of(work)
    assert (batch.labels == IGNORE_INDEX).any()
    inputs = learning.plain_inputs(batch, is_encoder_decoder=family == "t5")
    theirs = learning.textbook_loss(student, teacher, inputs, learning.entry_of(work))
    loss, gradient = loss_and_gradient(student, theirs)
    ours, our_gradient = loss_and_gradient(student, our_loss(student, teacher, work, batch))
    assert loss > 1e-3
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_trl_learns_what_we_learn(family, monkeypatch):
    pytest.importorskip("trl", reason="requirements-bench.txt")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    work = replace(KD, family=family, inputs=EQUAL, labels=EQUAL, forward_weight=0.0, logits_weight=1.0)
    student, teacher = learning.students_and_teachers(work)
    batch = models.batch_of(work)
    inputs = learning.plain_inputs(batch, is_encoder_decoder=False)
    loss, gradient = loss_and_gradient(student, learning.trl_loss(student, teacher, inputs))
    ours, our_gradient = loss_and_gradient(student, our_loss(student, teacher, work, batch))
    torch.testing.assert_close(ours, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(our_gradient, gradient, rtol=1e-4, atol=1e-5)


def weights_after(step, n_steps: int = 2) -> int:
    return [step() for _ in range(n_steps)][-1]


@pytest.mark.parametrize(("name", "teacher"), [("textbook", SMALL), ("trainer", None)])
def test_steps_leave_the_same_weights(name, teacher, tmp_path, monkeypatch):
    """Two updates of ours and of a baseline, dropout off: forward, loss, backward and AdamW are the same work."""
    forward = 0.5 if teacher else 1.0
    work = replace(KD, teacher=teacher, forward_weight=forward, logits_weight=1 - forward)
    built = []
    original = learning.students_and_teachers
    monkeypatch.setattr(learning, "students_and_teachers", lambda work: built.append(original(work)) or built[-1])
    for implementation in ("ours", name):
        step = learning.LEARNERS[implementation](work, CPU, tmp_path)
        assert weights_after(step) == learning.n_tokens(models.batch_of(work))
    (ours, _), (theirs, _) = built
    start = original(work)[0]
    moved = 0.0
    for (key, mine), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-5, msg=lambda text, key=key: f"{key}: {text}")
        moved += float((mine - start.get_parameter(key)).detach().abs().sum())
    assert moved > 0.1


def test_every_row_names_implementations_of_its_kind():
    for row in ROWS:
        known = learning.LEARNERS if isinstance(row.work, Learning) else writing.WRITERS
        assert row.implementations[0].startswith("ours")
        assert set(row.implementations) <= {*known, workers.PRODUCTS}
    assert len({row.name for row in ROWS}) == len(ROWS)


def test_half_of_the_label_positions_are_padding():
    work = next(row.work for row in ROWS if row.name == "kd-t5")
    labels = models.batch_of(work).labels
    assert labels.shape[0] == 96
    assert labels.shape[1] <= 48
    assert 0.35 < float((labels == IGNORE_INDEX).float().mean()) < 0.65
    assert all(int(row[row != IGNORE_INDEX][-1]) == models.EOS for row in labels)


def test_lengths_of_real_pairs_are_taken(tmp_path):
    path = tmp_path / "data.json"
    rows = {"text": ["a b c", "a"], "target": ["a b c d e", "a b c d e f g h i"]}
    path.write_text(json.dumps({"train": rows}), encoding="utf-8")
    pairs = bench.real_lengths(str(path))
    assert sorted(pairs) == [(2, 13), (5, 7)]  # 1.3 tokens a word, and EOS
    batch = models.batch_of(replace(KD, labels=Lengths(5, 12)), pairs)
    assert set((batch.labels != IGNORE_INDEX).sum(dim=1).tolist()) == {7, 12}
    assert models.batch_of(replace(KD, labels=EQUAL), pairs).labels.shape == (5, 6)  # no spread: as the row says


def test_data_without_pairs_is_refused(tmp_path, capsys):
    path = tmp_path / "raw.json"
    path.write_text('{"train": {"original": ["a"], "modern": ["b"]}}')
    assert bench.main(["--data", str(path), "--output_dir", str(tmp_path / "out")]) == 2
    assert "column 'text' is missing" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------ writing


def test_own_tokens_end_with_eos():
    written = torch.tensor([[5, 1, 0, 0], [5, 6, 7, 8], [1, 1, 1, 1], [0, 5, 1, 5]])
    assert writing.own_tokens(written) == 2 + 4 + 1 + 3


def test_a_trained_like_model_is_peaked_and_ends_at_varied_lengths():
    work = Writing(4_000, Shape(64, 64, 2), 8, UNEQUAL, "sampling", targets=8, max_new_tokens=24, mean_length=8.0)
    model, batch = models.trained_like(work), models.batch_of(work)
    torch.manual_seed(0)
    written = model.generate(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, do_sample=True, top_p=0.95, top_k=0,
        max_new_tokens=24, num_return_sequences=8, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    ends = (written.sequences[:, 1:] == models.EOS).long()
    open_ = ends.cumsum(dim=1) - ends == 0
    lengths = open_.sum(dim=1).float()
    probabilities = torch.stack(written.logits, dim=1)[open_].softmax(-1)
    assert float(probabilities.topk(256).values.sum(-1).mean()) == pytest.approx(0.9999, abs=3e-4)
    assert 0.05 < float(probabilities.max(-1).values.mean()) < 0.95
    assert 3 < float(lengths.mean()) < 16
    assert float(lengths.std()) > 2


@pytest.mark.parametrize("name", ["ours", "generate", "ctranslate2"])
def test_beam_search_writes_the_same_number_of_tokens(name, tmp_path):
    if name == "ctranslate2":
        pytest.importorskip("ctranslate2", reason="requirements-bench.txt")
    work = replace(WRITE, generation_type="beam_search", num_beams=1, targets=1)
    model, batch = models.trained_like(work), models.batch_of(work)
    greedy = model.generate(batch.input_ids, attention_mask=batch.attention_mask, max_new_tokens=8, num_beams=1)
    assert writing.WRITERS[name](work, CPU, tmp_path)() == writing.own_tokens(greedy[:, 1:])


@pytest.mark.parametrize("name", ["ours", "generate", "ctranslate2"])
def test_sampling_counts_what_was_written(name, tmp_path):
    if name == "ctranslate2":
        pytest.importorskip("ctranslate2", reason="requirements-bench.txt")
    write = writing.WRITERS[name](WRITE, CPU, tmp_path)
    counts = {write() for _ in range(4)}
    assert len(counts) > 1  # drawn anew each time
    assert all(6 <= n <= 48 for n in counts)


# ---------------------------------------------------------------------------------------------- processes, end to end


def test_products_are_counted():
    """What torch's counter leaves out: attention on the processor, and products that are added in place."""
    query, key, value = (torch.randn(2, 3, 4, 8, requires_grad=True) for _ in range(3))
    with FlopCounterMode(display=False, custom_mapping=contestants.PRODUCT_FLOPS) as counter:
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    one = 2 * 2 * 3 * 4 * 4 * 8
    assert counter.get_total_flops() == 2 * one
    with FlopCounterMode(display=False, custom_mapping=contestants.PRODUCT_FLOPS) as counter:
        attended.sum().backward()
    assert counter.get_total_flops() == 5 * one  # the scores once more, and a gradient for each factor
    with FlopCounterMode(display=False, custom_mapping=contestants.PRODUCT_FLOPS) as counter:
        torch.zeros(2, 3).addmm_(torch.ones(2, 5), torch.ones(5, 3))
    assert counter.get_total_flops() == 2 * 2 * 5 * 3


def test_products_with_a_layout_are_counted():
    layout = packed(torch.ones(7, 5))
    if layout is None:
        pytest.skip("no layout on this processor")
    with FlopCounterMode(display=False, custom_mapping=contestants.PRODUCT_FLOPS) as counter:
        product(torch.ones(2, 3, 5), layout)
    assert counter.get_total_flops() == 2 * 2 * 3 * 5 * 7


@pytest.mark.parametrize(("work", "implementations"), [(KD, learning.LEARNERS), (WRITE, writing.WRITERS)])
def test_products_alone_are_all_of_them(work, implementations, tmp_path):
    """Those of one repetition, forward and backward: as many operations, the same tokens, and nothing changed."""
    repeat = implementations["ours"](work, CPU, tmp_path)
    with FlopCounterMode(display=False, custom_mapping=contestants.PRODUCT_FLOPS) as counter:
        tokens = repeat()
    alone = contestants.products_alone(implementations["ours"](work, CPU, tmp_path))
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False, custom_mapping=contestants.PRODUCT_FLOPS) as again:
            assert alone() == tokens
        counts.append(again.get_total_flops())
    assert counts == [counter.get_total_flops()] * 2


def test_an_implementation_named_products_is_that_of_the_first(tmp_path):
    row, settings = Row("kd", KD, ("textbook", "products")), workers.Settings(tmp_path)
    measured = contestants.Contestant(row, "products", settings).timed()
    assert measured["tokens"] == contestants.Contestant(row, "textbook", settings).timed()["tokens"]
    assert measured["seconds"] > 0


class Here:
    """A worker without a process."""

    def __init__(self, row: Row, name: str, settings: workers.Settings) -> None:
        self.holds = (contestants.Limit if name == workers.LIMIT else contestants.Contestant)(row, name, settings)

    def ask(self, question: str) -> object:
        return getattr(self.holds, question)() if question else None

    def stop(self) -> None:
        pass


@pytest.mark.slow
def test_rows_run_end_to_end(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(workers, "Worker", Here)
    monkeypatch.setattr(workers, "PAUSE", 0)
    document = tmp_path / "RESULTS.md"
    document.write_text(f"# Kept\n\n{report.BEGIN}\nold\n{report.END}\n\nKept too.\n", encoding="utf-8")
    rows = (Row("kd", KD, ("ours", "textbook"), repetitions=9), Row("gen", WRITE, ("ours",), repetitions=1))
    flags = ["--quick", "--threads", "1", "--output_dir", str(tmp_path / "out"), "--write", str(document)]
    assert bench.main(flags, rows) == 0
    out = capsys.readouterr().out
    assert "[kd] textbook: 3 of 3" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert [(each["row"], each["implementation"]) for each in results["rows"]] == [
        ("kd", "ours"), ("kd", "textbook"), ("gen", "ours"),
    ]  # fmt: skip
    for each in results["rows"]:
        assert len(each["seconds"]) == len(each["tokens"]) == (3 if each["row"] == "kd" else 1)
        assert min(each["tokens"]) > 0
        assert each["tokens_per_second"] > 0
        assert each["peak_bytes_above_models"] >= 0
        assert 0 < each["share_of_floor"] < 1
    text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert text in out
    changed = document.read_text(encoding="utf-8")
    assert text.strip() in changed
    assert changed.startswith("# Kept\n\n<!-- bench -->\n")
    assert changed.endswith("<!-- /bench -->\n\nKept too.\n")
    assert "old" not in changed


@pytest.mark.slow
def test_a_process_answers_in_time_or_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 60.0)  # a busy machine takes longer to end a process than is waited for
    row, settings = Row("kd", KD, ("ours", "textbook")), workers.Settings(tmp_path, timeout=600)
    slow = workers.Worker(row, "textbook", replace(settings, timeout=0.01))
    with workers.stopping(workers.Worker(row, "ours", settings)) as ours:
        with pytest.raises(workers.DidNotFitError, match=r"no answer in 0\.01 s"):
            slow.ask("")
        slow.process.kill()
        slow.process.join()
        with pytest.raises(
            workers.DidNotFitError, match="killed by signal 9"
        ):  # as the kernel does when memory is short
            slow.ask("timed")
        slow.stop()
        slow.stop()
        assert ours.ask("") is None
        assert ours.ask("timed")["tokens"] == learning.n_tokens(models.batch_of(KD))
        assert ours.ask("peak") > 0
    assert slow.process.exitcode == -signal.SIGKILL
    assert ours.process.exitcode == 0


@pytest.mark.slow
def test_what_does_not_fit_leaves_the_race(tmp_path, monkeypatch):
    class Tired(Here):
        """A baseline that is killed at its second repetition."""

        def __init__(self, row: Row, name: str, settings: workers.Settings) -> None:
            super().__init__(row, name, settings)
            self.answers = 3 if name == "textbook" else 100

        def ask(self, question: str) -> object:
            self.answers -= 1
            if self.answers < 0:
                raise workers.DidNotFitError("killed by signal 9")
            return super().ask(question)

    monkeypatch.setattr(workers, "Worker", Tired)
    monkeypatch.setattr(workers, "PAUSE", 0)
    row = Row("kd", KD, ("ours", "textbook"), repetitions=2)
    ours, textbook = workers.measure(row, workers.Settings(tmp_path), say)
    assert len(ours.seconds) == 2
    assert ours.flops_per_token > 3 * 2 * 60 * 8  # the output projection alone: forward, and two gradients
    assert ours.flops_per_token == textbook.flops_per_token
    assert not ours.note
    assert len(textbook.seconds) == 1  # shown as what did not fit all the same
    assert textbook.peak is None
    assert "did not fit: killed by signal 9" in report.table([(row, [ours, textbook])])[-1]


@pytest.mark.slow
def test_what_is_not_installed_is_no_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "Worker", Here)
    monkeypatch.setitem(workers.NEEDS, "textbook", "no_such_package")
    ours, textbook = workers.measure(Row("kd", KD, ("ours", "textbook"), 1), workers.Settings(tmp_path), say)
    assert ours.rate
    assert textbook.note == "not installed (requirements-bench.txt)"


class Pipe:
    """In place of a process's end of a pipe: it keeps what was answered."""

    def __init__(self, *questions: str) -> None:
        self.questions, self.answers = iter([*questions, workers.STOP]), []

    def recv(self) -> str:
        return next(self.questions)

    def send(self, answer: object) -> None:
        self.answers.append(answer)


@pytest.mark.parametrize(
    ("error", "fits"),
    [
        (MemoryError(), False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), False),
        (torch.OutOfMemoryError("CUDA out of memory."), False),
        (RuntimeError("shapes cannot be multiplied"), True),
    ],
)
def test_what_does_not_fit_in_memory_is_no_crash(error, fits, monkeypatch, tmp_path):
    def raise_it(*_):
        raise error

    monkeypatch.setitem(learning.LEARNERS, "textbook", lambda *_: raise_it)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    pipe = Pipe("timed")
    row = Row("kd", KD, ("ours", "textbook"))
    if fits:
        with pytest.raises(RuntimeError, match="multiplied"):
            workers.serve(pipe, row, "textbook", workers.Settings(tmp_path))
        return
    workers.serve(pipe, row, "textbook", workers.Settings(tmp_path))
    assert pipe.answers == [("answer", None), ("memory", "out of memory")]


@pytest.mark.parametrize(
    ("status", "kind", "text"),
    [(-signal.SIGKILL, workers.DidNotFitError, "killed by signal 9"), (1, workers.FailedError, "ended with status 1")],
)
def test_a_process_that_ends_is_told_apart(status, kind, text):
    """The kernel kills what is too large; anything else is an error, which the process has printed."""
    theirs = SimpleNamespace(process=SimpleNamespace(join=lambda: None, exitcode=status), timeout=5)
    reading, writing_end = os.pipe()
    os.close(writing_end)
    theirs.connection = workers.Connection(reading, writable=False)
    with pytest.raises(kind, match=text):
        workers.Worker.ask(theirs, "")


# --------------------------------------------------------------------------------------------------------- the report


def measured(name: str, **changes) -> workers.Measured:
    return replace(workers.Measured(name, [2.0, 1.0, 4.0], [100, 100, 100], 3_000_000_000, 1e9, 4e6), **changes)


RESULTS = [
    (Row("one", KD, ("ours", "textbook")), [measured("ours"), measured("textbook", seconds=[10.0] * 3)]),
    (
        Row("two", WRITE, ("ours", "generate")),
        [measured("ours"), measured("generate", seconds=[], tokens=[], note="x")],
    ),
]


def test_medians_and_shares():
    ours = measured("ours")
    assert ours.rate == 50  # the median of 50, 100 and 25 tokens per second
    assert ours.share_of_floor == pytest.approx(50 * 4e6 / 1e9)
    assert measured("ours", limit=None).share_of_floor is None


def test_the_limit_is_that_of_the_faster_format():
    rates = [{"float32": 2.0, "bfloat16": 4.0}, {"float32": 3.0, "bfloat16": 1.0}, {"float32": 2.5, "bfloat16": 0.1}]
    assert workers.limit_of("ours", rates) == 2.5
    assert workers.limit_of("ours-bf16", rates) == 3.0  # of 4, 3 and 2.5


def test_the_table_has_every_row():
    lines = report.table(RESULTS)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == list(report.COLUMNS)
    assert cells[2] == ["one", "ours", "50", "", "2.00", "100", "3.00", "20"]
    assert cells[3] == ["one", "textbook", "10", "× 5.00", "10.00", "100", "3.00", "4"]
    assert cells[4][:2] == ["two", "ours"]
    assert cells[5] == ["two", "generate", "x", "", "", "", "", ""]
    assert len({len(line) for line in lines}) == 1


def test_only_what_is_between_the_markers_is_replaced():
    document = f"before\n{report.BEGIN}old{report.END}\nbehind"
    once = report.between_markers(document, "new\n")
    assert once == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nbehind"
    assert report.between_markers(once, "new") == once


@pytest.mark.parametrize("document", ["", report.BEGIN, f"{report.END}{report.BEGIN}", 2 * (report.BEGIN + report.END)])
def test_a_document_without_a_place_is_refused_before_anything_runs(document, tmp_path, capsys):
    path = tmp_path / "RESULTS.md"
    path.write_text(document, encoding="utf-8")
    assert bench.main(["--write", str(path), "--output_dir", str(tmp_path / "out")], ()) == 2
    assert "needs exactly one" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == document
    assert not (tmp_path / "out").exists()


def test_an_unknown_row_is_refused(capsys):
    assert bench.main(["--rows", "kd-t6"]) == 2
    assert "unknown row 'kd-t6'; possible: kd-t5" in capsys.readouterr().err


def test_the_plot(tmp_path):
    pytest.importorskip("matplotlib", reason="requirements-bench.txt")
    assert report.plot(RESULTS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_no_plot_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    bench.write(RESULTS, report.machine("cpu", 1), tmp_path, None)
    assert "no plot" in capsys.readouterr().out
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["results.json", "results.md"]
