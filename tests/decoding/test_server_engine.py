"""Pseudo-targets from a server: what it is asked, what is made of its answers, and what happens when it fails."""

import json
import shutil
import signal
import threading
import time
from concurrent.futures import Future
from email.utils import formatdate
from functools import partial
from pathlib import Path

import pytest
from chat_tokenizers import chatml
from fake_server import serving
from tiny_runs import gen_flags, names, read, snapshot

import gen_main
import prepare_datasets_main
from src.api import client
from src.api.client import ServerClient
from src.api.completions import read_answer
from src.config.cli import run_script
from src.config.errors import UserError
from src.decoding.server_engine import Started
from src.devices import processes
from src.models.loading import load_tokenizer

PROGRESS = "generated_datasets.partial.jsonl"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    monkeypatch.delenv(client.KEY, raising=False)


@pytest.fixture(scope="module")
def folder(tiny_models, tmp_path_factory) -> str:
    """A model folder without weights."""
    copy = shutil.copytree(tiny_models["gpt2"]["teacher"], tmp_path_factory.mktemp("served") / "model")
    (copy / "model.safetensors").unlink()
    return str(copy)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def command(server, folder, data, out: Path, **flags) -> list[str]:
    asked = {"generation_engine": "server", "server_url": server.url, "generation_type": "sampling"}
    chosen = {"split_for_generation": ("train_0",), "num_return_sequences": 3, "server_concurrency": 4, "batch_size": 2}
    return gen_flags(folder, data, out, **(asked | chosen | flags))


def written(path: Path, split: str = "train_0") -> tuple[list, list]:
    columns = read(path)[split]
    return columns["generated"], columns["finish_reason"]


@pytest.fixture(scope="module")
def expected(folder, tokenizer, rotation_path, tmp_path_factory) -> dict:
    """What an undisturbed run writes."""
    with serving(tokenizer) as server:
        path = gen_main.main(command(server, folder, rotation_path, tmp_path_factory.mktemp("whole") / "out"))
    return read(path)


def test_a_request_has_the_input_as_ids_the_settings_and_a_seed_of_its_own(folder, tokenizer, rotation_path, tmp_path):
    flags = {"temperature": 0.7, "top_k": 9, "task_prompt": "summarize:"}
    with serving(tokenizer) as server:
        path = gen_main.main(command(server, folder, rotation_path, tmp_path, **flags))
        requests = server.requests[2:]  # the first two look at what the server does
    texts = read(Path(rotation_path))["train_0"]["text"]
    assert {tokenizer.decode(request["prompt"]) for request in requests} == {f"{text} summarize:" for text in texts}
    assert len({request["seed"] for request in requests}) == len(texts) == 10
    for request in requests:
        settings = {name: value for name, value in request.items() if name not in ("prompt", "seed")}
        assert settings == {
            "model": "smol",
            "n": 3,
            "max_tokens": 8,
            "temperature": 0.7,
            "top_p": 0.95,
            "top_k": 9,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": [tokenizer.eos_token_id],
        }
    by_text = {tokenizer.decode(request["prompt"]): request for request in requests}
    generated, reasons = written(path)
    for row, text in enumerate(texts):
        choices = [server.choice(by_text[f"{text} summarize:"], i) for i in range(3)]
        assert generated[3 * row : 3 * row + 3] == [choice["text"].strip() for choice in choices]
        assert reasons[3 * row : 3 * row + 3] == [choice["finish_reason"] for choice in choices]
    assert json.loads((tmp_path / "run.json").read_text())["data"]["server_model"] == "smol"


def test_prompts_by_a_chat_template(folder, rotation_path, tmp_path):
    """The server gets the template's prompt, and ends a target where the template ends a turn."""
    model, tokenizer = shutil.copytree(folder, tmp_path / "model"), chatml()
    tokenizer.save_pretrained(model)
    flags = {"chat_template": True, "system_prompt": "Be brief.", "max_input_length": 96}
    with serving(tokenizer) as server:
        gen_main.main(command(server, str(model), rotation_path, tmp_path / "out", **flags))
        requests = server.requests[2:]
    texts = read(Path(rotation_path))["train_0"]["text"]
    talks = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in texts]
    apply = partial(tokenizer.apply_chat_template, add_generation_prompt=True, enable_thinking=False, return_dict=False)
    assert sorted(request["prompt"] for request in requests) == sorted(map(apply, talks))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert all(request["stop_token_ids"][0] == end for request in requests)


def test_greedy_search(folder, tokenizer, rotation_path, tmp_path):
    flags = {"generation_type": "beam_search", "num_beams": 1, "num_return_sequences": 1}
    with serving(tokenizer) as server:
        gen_main.main(command(server, folder, rotation_path, tmp_path, **flags))
        assert {(each["temperature"], each["top_p"], each["top_k"]) for each in server.requests} == {(0.0, 1.0, -1)}


@pytest.mark.parametrize("lacks", ["takes_n", "gives_seeds"])
def test_a_server_that_takes_only_text_and_one_target_per_request(lacks, folder, tokenizer, rotation_path, tmp_path):
    with serving(tokenizer, takes_ids=False, names_ids=False, **{lacks: False}) as server:
        path = gen_main.main(command(server, folder, rotation_path, tmp_path))
        asked = [request for request in server.requests if request["max_tokens"] == 8][-30:]
    texts = read(Path(rotation_path))["train_0"]["text"]
    assert sorted(request["prompt"] for request in asked) == sorted(texts * 3)
    assert {request["n"] for request in asked} == {1}
    assert len({request["seed"] for request in asked}) == 30
    assert len(written(path)[0]) == 30


def test_several_inputs_at_a_time_but_not_more_than_the_flag_says(folder, tokenizer, rotation_path, tmp_path):
    with serving(tokenizer, seconds=0.02) as server:
        gen_main.main(command(server, folder, rotation_path, tmp_path, server_concurrency=3))
        assert 1 < server.most_open <= 3


OK = {"message": "please wait"}
FAILURES = {
    "429": ("status", (429, {"Retry-After": "0"}, OK)),
    "429 with a date": ("status", (429, {"Retry-After": formatdate(0, usegmt=True)}, OK)),
    "500": ("status", (500, {}, OK)),
    "a page of a proxy": ("status", (502, {}, b"<html>Bad gateway</html>")),
    "a cut answer": ("cut", None),
    "a disconnect": ("drop", None),
    "no JSON": ("status", (200, {}, b"<html>hello</html>")),
    "no choices": ("answer", {"choices": []}),
    "another type": ("answer", {"choices": "none"}),
    "an aborted completion": ("choice", {"finish_reason": "abort"}),
    "an unfinished completion": ("choice", {"finish_reason": None}),
}


def test_failures_that_pass_change_nothing(folder, tokenizer, rotation_path, tmp_path, expected, capsys):
    with serving(tokenizer) as server:
        probed = [("", None)] * 2
        server.failures = [*probed, *FAILURES.values(), *FAILURES.values()]
        path = gen_main.main(command(server, folder, rotation_path, tmp_path))
        assert not server.failures
    assert read(path) == expected
    assert capsys.readouterr().out.count("status 429: please wait; requests are repeated for up to 10 minutes") == 1


REFUSALS = {
    "status 400: too long xxx": ("status", (400, {}, {"error": {"message": "too\nlong " + "x" * 900}})),
    "status 404: no such model": ("status", (404, {}, {"detail": "no such model"})),
    "status 307: Temporary Redirect": ("status", (307, {}, b"")),
    "does not answer this input: content filter": ("choice", {"finish_reason": "content_filter"}),
}


@pytest.mark.parametrize("said", REFUSALS)
def test_a_refusal_is_final(said, tokenizer):
    with serving(tokenizer) as server:
        server.failures = [REFUSALS[said]]
        with pytest.raises(UserError) as raised:
            ask(server)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500


def ask(server):
    read = partial(read_answer, needs_logprobs=False)
    return ServerClient(server.url).request("/completions", {"prompt": "a", "n": 1, "seed": 0}, read)


def test_a_refusal_names_the_row_and_the_run_continues(folder, tokenizer, rotation_path, tmp_path, expected, capsys):
    with serving(tokenizer) as server:
        server.failures = [*[("", None)] * 6, next(iter(REFUSALS.values()))]
        flags = command(server, folder, rotation_path, tmp_path, server_concurrency=1)
        assert run_script(gen_main.main, flags) == 2
        errors = capsys.readouterr().err
        assert "error: split 'train_0', row " in errors
        assert errors.count("\n") == 1
        assert len((tmp_path / PROGRESS).read_text().splitlines()) == 2
        assert read(gen_main.main(flags)) == expected


def test_a_server_that_goes_away_loses_no_finished_piece(
    folder, tokenizer, rotation_path, tmp_path, expected, monkeypatch, capsys
):
    monkeypatch.setattr(client, "GIVE_UP_AFTER", 0.2)
    data = rotation_path
    with serving(tokenizer, gone_after=8) as server:
        assert run_script(gen_main.main, command(server, folder, data, tmp_path)) == 2
    said = capsys.readouterr().err
    assert "no answer for 0.00333333 minutes: Remote end closed connection" in said
    assert said.endswith("; the same command continues\n")
    done = [json.loads(line) for line in (tmp_path / PROGRESS).read_text().splitlines()]
    assert 1 <= len(done) <= 3
    with serving(tokenizer) as server:  # at another port, as after a restart
        path = gen_main.main(command(server, folder, data, tmp_path, server_concurrency=2))
        assert len(server.requests) == 2 + 10 - 2 * len(done)
    assert read(path) == expected


def test_pieces_behind_one_that_fails_are_kept(folder, tokenizer, rotation_path, tmp_path, capsys):
    """And the file of log-probabilities is the same as without the failure."""
    with serving(tokenizer) as server:
        gen_main.main(command(server, folder, rotation_path, tmp_path / "whole", top_logprobs=2))
    with serving(tokenizer) as server:
        server.failures = [*[("", None)] * 2, ("late", 9)]
        flags = command(server, folder, rotation_path, tmp_path / "out", top_logprobs=2, server_concurrency=2)
        assert run_script(gen_main.main, flags) == 2
        done = [json.loads(line)["batch"] for line in (tmp_path / "out" / PROGRESS).read_text().splitlines()]
        assert done[:2] == [1, 2]
        gen_main.main(flags)
    results = [snapshot(tmp_path / each) for each in ("whole", "out")]
    for name in ("generated_datasets.json", "api_completions.jsonl"):
        assert results[0][name] == results[1][name]


def test_ctrl_c_while_the_server_is_slow_ends_at_once(folder, tokenizer, rotation_path, tmp_path, capsys):
    with serving(tokenizer, hangs_after=6) as server:
        server.at_hang = lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        with pytest.raises(SystemExit) as stop:
            run_script(gen_main.main, command(server, folder, rotation_path, tmp_path, server_concurrency=1))
        while server.n_open:  # the server notices
            time.sleep(0.01)
    assert stop.value.code == 130
    assert "stopped; the same command continues" in capsys.readouterr().out
    assert len((tmp_path / PROGRESS).read_text().splitlines()) == 2


@pytest.mark.timeout(30)
def test_waits_for_the_server_are_short():
    """Python handles a signal that arrives just before a wait only when the wait ends, so each must end by itself."""
    answer: Future = Future()

    def finish_without_notice():
        time.sleep(0.2)
        answer._result, answer._state = [("a", "stop")], "FINISHED"

    thread = threading.Thread(target=finish_without_notice)
    thread.start()
    assert Started([answer]).result() == [("a", "stop")]
    thread.join()


def test_the_key_is_sent_and_shown_nowhere(folder, tokenizer, rotation_path, tmp_path, monkeypatch, capsys):
    with serving(tokenizer, key="sk-right-key") as server:
        flags = command(server, folder, rotation_path, tmp_path)
        monkeypatch.setenv(client.KEY, "sk-wrong-key")
        assert run_script(gen_main.main, flags) == 2
        said = capsys.readouterr()
        assert "status 401: Incorrect API key Bearer *** (the key is read from KD_SERVER_KEY)" in said.err
        assert "sk-" not in said.err + said.out
        assert not names(tmp_path)
        monkeypatch.setenv(client.KEY, " sk-right-key\n")
        gen_main.main(flags)
    said = capsys.readouterr()
    files = "".join(file.read_text() for file in tmp_path.iterdir())
    assert "sk-" not in files + said.out + said.err
    monkeypatch.setenv(client.KEY, "sk-a\nsk-b")
    with pytest.raises(
        UserError, match=f"^{client.KEY}: the key in this environment variable has characters"
    ) as raised:
        ServerClient(server.url)
    assert "sk-" not in str(raised.value)


@pytest.mark.parametrize(
    ("features", "flags", "said"),
    [
        ({"models": ["a", "b"]}, {}, "has several models, or none; give --server_model; possible: a b"),
        ({"models": ["a", "b"]}, {"server_model": "c"}, "has no model 'c'; possible: a b"),
        ({"wrong_ids": True}, {}, "--model_name: its tokenizer is not that of smol at .*: tokens that spell"),
        ({}, {"model_name_suffix": "_prune0"}, "the model at the server has all of its layers; give"),
    ],
)
def test_a_server_that_cannot_be_used(features, flags, said, folder, tokenizer, rotation_path, tmp_path):
    flags = dict(flags)
    name = folder + flags.pop("model_name_suffix", "")
    with serving(tokenizer, **features) as server, pytest.raises(UserError, match=said):
        gen_main.main(command(server, name, rotation_path, tmp_path, **flags))
    assert not names(tmp_path)


def test_one_process_asks_a_server(folder, tokenizer, rotation_path, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 2)
    with serving(tokenizer) as server, pytest.raises(UserError, match="server: start one process; the server does"):
        gen_main.main(command(server, folder, rotation_path, tmp_path))
    assert not names(tmp_path)


def test_no_server(folder, tokenizer, rotation_path, tmp_path):
    with serving(tokenizer) as server:
        flags = command(server, folder, rotation_path, tmp_path)
        with pytest.raises(UserError, match=r"/models: status 404: Not Found; does --server_url end as .* \(/v1\)"):
            gen_main.main([*flags, "--server_url", server.url.removesuffix("/v1")])
    with pytest.raises(UserError, match=f"^{server.url}: no answer: .*Connection refused"):
        gen_main.main(flags)


def test_a_long_retry_after_is_not_waited_for(tokenizer):
    with serving(tokenizer) as server:
        server.failures = [("status", (429, {"Retry-After": "3600"}, OK))]
        with pytest.raises(UserError, match="no answer for 10 minutes: status 429: please wait"):
            ask(server)


def test_retry_after_is_waited_for(tokenizer, monkeypatch):
    waited = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, seconds=None: waited.append(seconds))
    with serving(tokenizer) as server:
        server.failures = [("status", (503, {"Retry-After": "2"}, OK))]
        ask(server)
    assert 2 in waited
    assert 17 < client._seconds(formatdate(time.time() + 20, usegmt=True)) <= 20
    assert client._seconds("soon") == client._seconds(None) == 0


def test_another_model_at_the_server_does_not_continue_a_run(folder, tokenizer, rotation_path, tmp_path, monkeypatch):
    monkeypatch.setattr(client, "GIVE_UP_AFTER", 0.05)
    with serving(tokenizer, gone_after=6) as server:
        assert run_script(gen_main.main, command(server, folder, rotation_path, tmp_path, batch_size=1)) == 2
    said = "holds a run of the server's model smol, not of other"
    with serving(tokenizer, models=["other"]) as server, pytest.raises(UserError, match=said):
        gen_main.main(command(server, folder, rotation_path, tmp_path, batch_size=1))


def test_settings_of_the_model_are_sent_or_refused(folder, tokenizer, rotation_path, tmp_path):
    own = shutil.copytree(folder, tmp_path / "model")
    kind = read(own / "config.json") | {"model_type": "newer than transformers"}
    (own / "config.json").write_text(json.dumps(kind))
    (own / "generation_config.json").write_text('{"repetition_penalty": 1.3, "eos_token_id": [5, 3], "min_p": 0.1}')
    with serving(tokenizer) as server:
        gen_main.main(command(server, own, rotation_path, tmp_path / "a"))
        request = server.requests[-1]
        assert (request["repetition_penalty"], request["min_p"]) == (1.3, 0.1)
        assert set(request["stop_token_ids"]) == {tokenizer.eos_token_id, 5, 3}
        (own / "generation_config.json").write_text('{"no_repeat_ngram_size": 3}')
        flags = command(server, own, rotation_path, tmp_path / "b")
        with pytest.raises(UserError, match="generation config sets no_repeat_ngram_size, for which a request has no"):
            gen_main.main(flags)
        gen_main.main([*flags, "--model_generation_settings", "False"])


def test_a_dry_run_reports_and_writes_nothing(folder, tokenizer, rotation_path, tmp_path, capsys):
    with serving(tokenizer) as server:
        gen_main.main([*command(server, folder, rotation_path, tmp_path), "--dry_run", "True"])
        assert len(server.requests) == 3
    said = capsys.readouterr().out
    assert f"smol at {server.url}" in said
    assert "prompts are sent as token ids; a request brings all targets of an input" in said
    assert "30 targets, 3 of an input, by sampling" in said
    assert not names(tmp_path)


@pytest.mark.parametrize("names_ids", [True, False])
def test_the_road_of_log_probabilities(names_ids, folder, tokenizer, tiny_dataset_path, tmp_path):
    """From a server's answers to the stored tokens of a student with another tokenizer's strings."""
    flags = {"split_for_generation": ("train", "dev", "unlabeled"), "top_logprobs": 2}
    with serving(tokenizer, names_ids=names_ids) as server:
        path = gen_main.main(command(server, folder, tiny_dataset_path, tmp_path / "gen", **flags))
    answers = path.with_name("api_completions.jsonl")
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert {(line["split"], len(line["response"]["choices"])) for line in lines} == {
        ("train", 3), ("dev", 1), ("unlabeled", 3)
    }  # fmt: skip
    generated = read(path)
    texts = {split: read(Path(tiny_dataset_path))[split]["text"] for split in generated}
    for line in lines:
        row = texts[line["split"]].index(line["text"])
        choices = line["response"]["choices"]
        assert [choice["text"] for choice in choices] == generated[line["split"]]["generated"][3 * row :][
            : len(choices)
        ]
    prepared = prepare_datasets_main.main(
        ["--logits_dataset_path", str(answers), "--student_name", folder, "--output_dir", str(tmp_path / "data")]
    )
    split = read(prepared)["train_0"]
    assert {"tokens", "logits"} <= split.keys()
    for target, tokens, logits in zip(split["target"], split["tokens"], split["logits"], strict=True):
        label_ids = tokenizer(" " + target, add_special_tokens=False)["input_ids"]
        assert [each[0] for each in tokens[:-1]] == label_ids
        assert {each[0] for each in logits[:-1]} == {-0.25}
    assert sum(len(each) > 1 for logits in split["logits"] for each in logits) > sum(map(len, split["logits"])) / 2
