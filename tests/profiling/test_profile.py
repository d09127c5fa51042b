"""profile_main.py: its two files, what they hold, and a profile that was interrupted."""

import csv
import json
from collections import Counter

import pytest
import torch
from tiny_runs import argv

import profile_main
from src import profile_models
from src.config.errors import NotFiniteError, UserError
from src.devices import memory as machine
from src.models.loading import load_model
from src.profiling.cells import CellProfile
from src.profiling.measure import Workload
from src.profiling.results import Record


def command(models, out, **flags):
    names = tuple(models[family]["teacher"] for family in ("t5", "gpt2"))
    quick = {"n_calls": 2, "warmup_calls": 1, "input_length": 6, "target_length": 3}
    return argv({"model_name": names, "output_file_path": out, **quick, **flags})


def records(path) -> list[dict]:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture
def measured(monkeypatch) -> list:
    """The batch sizes that are measured, in this order."""
    sizes = []
    record = CellProfile._record
    monkeypatch.setattr(
        CellProfile, "_record", lambda self, size, *calls: sizes.append(size) or record(self, size, *calls)
    )
    return sizes


def test_a_profile(tiny_models, tmp_path, capsys):
    path = tmp_path / "new" / "profile.csv"
    profile_main.main(command(tiny_models, path, num_beams=(1, 2), batch_size=(1, 2)))
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == str(path.with_suffix(".json"))
    found = records(path)
    assert len(found) == len(printed) - 1 == 8
    assert list(Counter(each["model_name"] for each in found).values()) == [4, 4]
    n_parameters = {name: load_model(name).num_parameters() for name in {each["model_name"] for each in found}}
    for each in found:
        assert each["parameters"] == n_parameters[each["model_name"]]
        assert each["batch_size"] in (1, 2)
        assert 0 < each["latency_ms_median"] <= each["latency_ms_p90"]
        assert 0 < each["forward_ms_median"] <= each["forward_ms_p90"]
        seconds = each["latency_ms_median"] / 1000
        assert each["sentences_per_second"] == pytest.approx(each["batch_size"] / seconds, rel=1e-3)
        assert each["tokens_per_second"] == pytest.approx(
            each["target_length"] * each["batch_size"] / seconds, rel=1e-3
        )
        assert each["peak_memory_mb"] >= round(each["parameters"] * 4 / 1e6, 1)
        assert (each["device"], each["max_batch_size"], each["n_calls"]) == ("cpu", None, 2)
        assert each["enc_layers_to_keep"] is each["dec_layers_to_keep"] is None
        assert each["versions"]["torch"] == torch.__version__
    one, two = found[:2]
    assert two["flops"] == 2 * one["flops"]
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["latency_ms_median"] for row in rows] == [str(each["latency_ms_median"]) for each in found]
    assert rows[0].keys() == found[0].keys()


@pytest.mark.slow
def test_layers_kept(tiny_models, tmp_path):
    """A pruned model has fewer parameters and FLOPs, whichever way its layers are named."""
    whole, path = tiny_models["t5"]["teacher"], tmp_path / "p.json"
    names = (whole, f"{whole}_prune0_2:", f"{whole}_prune0")
    profile_main.main(command(tiny_models, path, model_name=names))
    profile_main.main(command(tiny_models, path, model_name=whole, enc_layers_to_keep=0, dec_layers_to_keep=(0, -1)))
    layers = [(each["enc_layers_to_keep"], each["dec_layers_to_keep"]) for each in records(path)]
    assert layers == [(None, None), ([0, 2], None), (None, [0]), ([0], [0, -1])]
    assert [each["model_name"] for each in records(path)] == [*names, f"{whole}_prune0:0_-1"]
    for each in ("parameters", "flops"):
        whole_one, *pruned = (record[each] for record in records(path))
        assert max(pruned) < whole_one
    assert records(path)[3]["parameters"] == load_model(f"{whole}_prune0:0_-1").num_parameters()
    with path.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        assert [row["dec_layers_to_keep"] for row in csv.DictReader(file)] == ["", "", "0", "0 -1"]


def test_an_interrupted_profile_goes_on(tiny_models, tmp_path, monkeypatch, measured, capsys):
    flags = command(tiny_models, tmp_path / "p.csv", batch_size=(1, 2))
    whole = CellProfile.measure

    def interrupted(self, size):
        if len(measured) == 3:
            raise KeyboardInterrupt
        return whole(self, size)

    monkeypatch.setattr(CellProfile, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        profile_main.main(flags)
    before = records(tmp_path / "p.csv")
    assert len(before) == 3
    monkeypatch.setattr(CellProfile, "measure", whole)
    profile_main.main(flags)
    assert measured == [1, 2, 1, 2]
    assert records(tmp_path / "p.csv")[:3] == before
    assert "3 of 4 entries are there" in capsys.readouterr().out


def test_a_finished_profile_loads_nothing(tiny_models, tmp_path, monkeypatch, measured):
    flags = command(tiny_models, tmp_path / "p.csv", model_name=tiny_models["t5"]["student"])
    profile_main.main(flags)
    with monkeypatch.context() as forbidden:
        forbidden.delattr(profile_models, "load_model")
        (tmp_path / "p.csv").unlink()  # a kill between the two files
        profile_main.main(flags)
    assert (tmp_path / "p.csv").is_file()
    profile_main.main([*flags, "--overwrite"])
    assert measured == [1, 1]
    assert len(records(tmp_path / "p.csv")) == 1


@pytest.fixture
def memory_by_size(monkeypatch, measured) -> list:
    """Memory by arithmetic: a generated token takes 1 MB. Returns the sizes of the batches that were run."""
    ran = []

    def growth_during(call, _device):
        call()
        return int(ran[-1] * 3 * 1e6)

    for name in ("generate", "forward"):
        method = getattr(Workload, name)

        def noted(self, batch, method=method):
            ran.append(len(batch.input_ids))
            return method(self, batch)

        monkeypatch.setattr(Workload, name, noted)
    monkeypatch.setattr(machine, "growth_during", growth_during)
    return ran


def test_the_largest_batch(tiny_models, tmp_path, memory_by_size):
    name, path = tiny_models["gpt2"]["student"], tmp_path / "p.csv"
    sizes = {"batch_size": (1, 50), "maximum_memory": 40, "n_calls": 20}
    profile_main.main(command(tiny_models, path, model_name=name, find_maximal_batch_size=True, **sizes))
    largest, one, too_many = records(path)
    assert largest["batch_size"] == largest["max_batch_size"] == one["max_batch_size"] == 13
    assert (largest["n_calls"], one["n_calls"]) == (3, 20)
    assert largest["peak_memory_mb"] == pytest.approx(39, abs=0.2)
    assert max(memory_by_size) == 13
    assert (too_many["batch_size"], too_many["latency_ms_median"], too_many["peak_memory_mb"]) == (50, None, None)
    assert too_many["flops"] == 50 * one["flops"]


def test_the_largest_batch_is_found_later(tiny_models, tmp_path, memory_by_size, measured):
    """It is noted in records that are there, and one of them is not measured again."""
    name, path = tiny_models["gpt2"]["student"], tmp_path / "p.csv"
    flags = {"model_name": name, "batch_size": (1, 13), "maximum_memory": 40}
    profile_main.main(command(tiny_models, path, **flags | {"batch_size": 1}))
    profile_main.main(command(tiny_models, path, find_maximal_batch_size=True, **flags))
    profile_main.main(command(tiny_models, path, find_maximal_batch_size=True, **flags))
    assert measured == [1, 13]
    assert [each["max_batch_size"] for each in records(path)] == [13, 13]


def test_no_batch_fits(tiny_models, tmp_path, memory_by_size, measured):
    name, path = tiny_models["gpt2"]["student"], tmp_path / "p.csv"
    flags = command(tiny_models, path, model_name=name, find_maximal_batch_size=True, maximum_memory=1)
    profile_main.main(flags)
    profile_main.main(flags)
    (record,) = records(path)
    assert (record["batch_size"], record["max_batch_size"], record["latency_ms_median"]) == (1, 0, None)
    assert measured == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu(tiny_models, tmp_path):
    path = tmp_path / "p.csv"
    flags = {"find_maximal_batch_size": True, "maximum_memory": 50, "device": 0}
    profile_main.main(command(tiny_models, path, **flags))
    for record in records(path):
        assert record["device"] == "cuda:0"
        assert 0 < record["peak_memory_mb"] <= 50
        assert record["max_batch_size"] >= record["batch_size"]


def test_a_csv_without_its_json_is_not_overwritten(tiny_models, tmp_path, capsys):
    (tmp_path / "p.csv").write_text("mine")
    with pytest.raises(UserError, match="p.csv exists, but no p.json; name another file, or add"):
        profile_main.main(command(tiny_models, tmp_path / "p.csv"))
    assert (tmp_path / "p.csv").read_text() == "mine"


def test_what_cannot_be_profiled_is_one_line(tiny_models, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"^--output_file_path {tmp_path}/made.json: is a folder"):
        (tmp_path / "made.json").mkdir()
        profile_main.main(command(tiny_models, tmp_path / "made.csv"))

    def overflow(*_):
        raise NotFiniteError("the model computes NaN or infinity")

    monkeypatch.setattr(CellProfile, "_record", overflow)
    with pytest.raises(UserError, match="t5_teacher: the model computes NaN or infinity$"):
        profile_main.main(command(tiny_models, tmp_path / "p.csv"))


def test_records_have_what_a_report_reads():
    assert set(Record.__struct_fields__) >= {
        "model_name", "enc_layers_to_keep", "dec_layers_to_keep", "batch_size", "input_length", "target_length",
        "num_beams", "device", "parameters", "flops", "latency_ms_median", "latency_ms_p90", "forward_ms_median",
        "peak_memory_mb", "sentences_per_second", "tokens_per_second", "max_batch_size", "versions",
    }  # fmt: skip
