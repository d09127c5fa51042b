"""simulate_api_main.py: the text of its tokens, its log-probabilities, and its three forms."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import FAMILY_NAMES, tiny_sentences, tiny_sizes
from tiny_runs import gen_flags, names, read
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

import gen_main
import simulate_api_main
from src import simulate_api
from src.api.simulated import GeneratedCompletion, chat_choice, token_string
from src.config.errors import UserError
from src.config.signals import Interrupted, StopRequests
from src.decoding.generator import TargetGenerator
from src.models.folders import write_model_folder
from src.models.forward import target_labels, target_logits
from src.models.loading import load_model, load_tokenizer
from src.models.new_models import build_from_scratch
from src.models.new_tokenizers import train_tokenizer
from src.simulate_api import top_logprobs
from src.tokens.batch import Batch, collate
from src.tokens.preprocessing import Preprocessor
from src.tokens.token_bytes import TokenBytes, n_whole
from src.tokens.tokenized import TokenizedDatasets

K = 3  # most likely tokens
COUNTS = {"train": 2, "dev": 1, "unlabeled": 2}  # completions of an input with --n_completions 2
LENGTH = 6  # tokens a completion may have
TEXTS = {"train": ["A cat.", "The old dog sees a bird.", "Red."], "dev": ["A dog."], "unlabeled": ["A bird."]}
SENTENCE = "漢é 😀x"


@dataclass
class Run:
    """A file of a simulated API, and the tokens that the model wrote, by split, row and number, as they came."""

    model: str
    path: Path
    written: dict[tuple[str, int, int], list[int]]

    @property
    def content(self) -> dict:
        return read(self.path)


def api_flags(model: str, data: Path, out: Path, **flags) -> list[str]:
    """Two completions of each input, sampled, three log-probabilities."""
    shared = {"max_labels_length": LENGTH, "n_completions": 2, "top_logprobs": K, "generation_type": "sampling"}
    return gen_flags(model, data, out, **{**shared, **flags})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three, one and one rows; `unlabeled` has no targets; `dev_ppl` is not completed unless named."""
    datasets = {split: {"text": texts, "target": texts} for split, texts in TEXTS.items()}
    del datasets["unlabeled"]["target"]
    path = tmp_path_factory.mktemp("api") / "data.json"
    path.write_text(json.dumps(datasets | {"dev_ppl": datasets["dev"]}))
    return path


def run(model: str, data: Path, out: Path, **flags) -> Run:
    """The script's run; batches of one row tell whose the tokens are (of a split, the longest inputs come first)."""
    taken: list[tuple[int, list[list[int]]]] = []

    def noted(self, batch: Batch, k: int) -> torch.Tensor:
        tokens = write(self, batch, k)
        taken.append((batch.rows[0], tokens.tolist()))
        return tokens

    write = TargetGenerator.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TargetGenerator, "generate", noted)
        path = simulate_api_main.main(api_flags(model, data, out, **{"batch_size": 1, **flags}))
    splits = [split for split, texts in TEXTS.items() for _ in texts]
    written = {
        (split, row, i): tokens
        for split, (row, rows) in zip(splits, taken, strict=True)
        for i, tokens in enumerate(rows)
    }
    return Run(model, path, written)


@pytest.fixture(scope="module", params=["t5", "gpt2"])
def published(request, tiny_models, data, tmp_path_factory) -> Run:
    return run(tiny_models[request.param]["teacher"], data, tmp_path_factory.mktemp("published") / "out")


@pytest.fixture(scope="module")
def byte_models(tiny_corpus, tmp_path_factory) -> dict[str, str]:
    """Models of one layer whose tokenizers have a token for every byte, and none for most characters."""
    folders = {}
    for family in ("t5", "gpt2"):
        tokenizer = train_tokenizer(tiny_corpus, 1024, family=family)
        model = build_from_scratch(family, tiny_sizes(tokenizer, d_model=16, n_layers=1), seed=0)
        folder = tmp_path_factory.mktemp("byte_models") / family
        folders[family] = str(write_model_folder(folder, model, tokenizer, "A test's.\n"))
    return folders


def until_eos(tokens: list[int], eos: int) -> tuple[list[int], bool]:
    return (tokens[: tokens.index(eos)], True) if eos in tokens else (tokens, False)


def as_written(name: str) -> str:
    """A token's name in the vocabulary as text; all tokens of the tiny tokenizers are ASCII."""
    return name.replace("▁", " ").replace("Ġ", " ")


def cells(columns: dict) -> list[dict]:
    """The rows of a split of a dataset file."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


# ------------------------------------------------------------------------------------------------------- what is there


def test_rows_and_columns(published):
    assert names(published.path.parent) == {"api_completions.json", "run.json"}
    assert list(published.content) == ["train", "dev", "unlabeled"]
    for split, columns in published.content.items():
        given = ["text", "target"] if split != "unlabeled" else ["text"]
        assert list(columns) == [*given, "prediction", "tokens", "logprobs", "finish_reason"]
        for name in given:
            assert columns[name] == [text for text in TEXTS[split] for _ in range(COUNTS[split])]


def test_tokens_are_those_written_and_spell_the_prediction(published):
    tokenizer = load_tokenizer(published.model)
    reasons = set()
    for split, texts in TEXTS.items():
        for i, row in enumerate(cells(published.content[split])):
            tokens, ended = until_eos(published.written[split, *divmod(i, COUNTS[split])], tokenizer.eos_token_id)
            expected = [token for token in tokens if token not in tokenizer.all_special_ids]
            assert len(row["tokens"]) == len(row["logprobs"]) == len(expected)
            spelled = "".join(as_written(name) for name in tokenizer.convert_ids_to_tokens(expected))
            assert "".join(row["tokens"]) == row["prediction"] == spelled.removeprefix(" ")
            assert row["prediction"] == tokenizer.decode(expected).removeprefix(" ")
            assert row["finish_reason"] == ("stop" if ended else "length")
            reasons.add(row["finish_reason"])
        assert len(texts) * COUNTS[split] == i + 1
    assert "length" in reasons


def dense(run: Run, split: str, row: int, tokens: list[int]) -> torch.Tensor:
    """(T, V) log-probabilities of the model, by the library alone."""
    text, tokenizer = TEXTS[split][row], load_tokenizer(run.model)
    source = tokenizer(text, return_tensors="pt")["input_ids"]
    written = torch.tensor([tokens], dtype=torch.long)
    with torch.no_grad():
        if "t5" in Path(run.model).name:
            model = AutoModelForSeq2SeqLM.from_pretrained(run.model)
            start = torch.tensor([[model.config.decoder_start_token_id]])
            logits = model(input_ids=source, decoder_input_ids=torch.cat([start, written], dim=1)).logits[0]
        else:
            model = AutoModelForCausalLM.from_pretrained(run.model)
            logits = model(input_ids=torch.cat([source, written], dim=1)).logits[0, source.shape[1] - 1 :]
    return logits[: len(tokens)].log_softmax(-1)


def test_log_probabilities_are_the_model_s(published):
    """Of the raw distribution: neither the nucleus nor what is listed changes them."""
    tokenizer = load_tokenizer(published.model)
    outside = 0
    for (split, row, number), written in published.written.items():
        tokens, _ = until_eos(written, tokenizer.eos_token_id)
        logs = dense(published, split, row, tokens)
        entries = iter(cells(published.content[split])[row * COUNTS[split] + number]["logprobs"])
        is_first = True
        for token, expected in zip(tokens, logs, strict=True):
            if token in tokenizer.all_special_ids:
                continue
            best = expected.topk(K)
            ids = best.indices.tolist()
            outside += token not in ids
            wanted: dict[str, float] = {}
            for each in [*ids, token]:
                name = as_written(tokenizer.convert_ids_to_tokens(each))
                wanted.setdefault(name.removeprefix(" ") if is_first else name, expected[each].item())
            got = next(entries)
            assert got == pytest.approx(wanted, abs=2e-6)
            assert list(got.values()) == sorted(got.values(), reverse=True)
            is_first = False
        assert next(entries, None) is None
    assert outside, "some tokens must not be among the most likely ones, or the test sees little"


def test_the_token_written_is_among_the_entries(published):
    sizes = set()
    for split in TEXTS:
        for row in cells(published.content[split]):
            for token, entries in zip(row["tokens"], row["logprobs"], strict=True):
                assert token in entries
                sizes.add(len(entries))
    assert sizes <= {K - 1, K, K + 1}  # K - 1: `▁a` and `a` begin a text alike
    assert {K, K + 1} <= sizes


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_text_is_that_of_the_generation_script(tiny_models, data, tmp_path, family):
    """The same seed, splits and batches: the same draws."""
    model = tiny_models[family]["teacher"]
    shared = {"split_for_generation": ("train", "unlabeled"), "max_labels_length": LENGTH, "batch_size": 2}
    kinds = {"sampling": {"generation_type": "sampling"}, "greedy": {"generation_type": "beam_search", "num_beams": 1}}
    for kind, flags in kinds.items():
        k = 2 if kind == "sampling" else 1
        generated = read(gen_main.main(gen_flags(model, data, tmp_path / f"gen_{kind}", num_return_sequences=k,
                                                 **shared, **flags)))  # fmt: skip
        api = {"generation_type": kind, "n_completions": k, "num_beams": 4}
        written = read(simulate_api_main.main(api_flags(model, data, tmp_path / f"api_{kind}", **shared, **api)))
        for split in ("train", "unlabeled"):
            assert [text.strip() for text in written[split]["prediction"]] == generated[split]["generated"]
        if kind == "greedy":
            for row in cells(written["train"]):
                for token, entries in zip(row["tokens"], row["logprobs"], strict=True):
                    assert entries[token] == max(entries.values())


# --------------------------------------------------------------------------------------------------------------- forms


def test_the_forms_agree(tiny_models, data, tmp_path):
    model, files = tiny_models["gpt2"]["teacher"], {}
    for form in ("published", "chat", "jsonl"):
        files[form] = simulate_api_main.main(api_flags(model, data, tmp_path / form, form=form))
    published, chat = read(files["published"]), read(files["chat"])
    assert files["jsonl"].name == "api_completions.jsonl"
    lines = [json.loads(line) for line in files["jsonl"].read_text(encoding="utf-8").splitlines()]
    assert [(line["split"], line["text"]) for line in lines] == [
        (split, text) for split, texts in TEXTS.items() for text in texts
    ]
    for split in TEXTS:
        responses = [line for line in lines if line["split"] == split]
        assert all(line.get("target") == (line["text"] if split != "unlabeled" else None) for line in responses)
        choices = [choice for line in responses for choice in line["response"]["choices"]]
        rows = zip(cells(published[split]), cells(chat[split]), choices, strict=True)
        for plain, listed, choice in rows:
            assert {**plain, "logprobs": 0} == {**listed, "logprobs": 0}
            assert choice["message"]["content"] == plain["prediction"]
            assert choice["finish_reason"] == plain["finish_reason"]
            assert choice["logprobs"]["content"] == listed["logprobs"]
            for token, entries, item in zip(plain["tokens"], plain["logprobs"], listed["logprobs"], strict=True):
                assert item["token"] == token
                assert bytes(item["bytes"]).decode() == token
                assert item["logprob"] <= entries[token]  # a likelier token may have the same string
                assert [(each["token"], each["logprob"]) for each in item["top_logprobs"]] == list(entries.items())


def test_the_same_seed_gives_the_same_bytes_after_an_interruption_too(tiny_models, data, tmp_path, monkeypatch):
    def flags(name: str, **others) -> list[str]:
        return api_flags(tiny_models["t5"]["student"], data, tmp_path / name, batch_size=2, form="jsonl", **others)

    whole = simulate_api_main.main(flags("whole")).read_bytes()
    assert simulate_api_main.main(flags("other", seed=1)).read_bytes() != whole
    asked = iter(range(100))
    with monkeypatch.context() as patch:
        patch.setattr(StopRequests, "check", lambda _: stop() if next(asked) == 2 else None)
        with pytest.raises(Interrupted):
            simulate_api_main.main(flags("again"))
    assert not (tmp_path / "again" / "api_completions.jsonl").exists()
    path = simulate_api_main.main(flags("again"))
    assert path.read_bytes() == whole
    assert names(path.parent) == {"api_completions.jsonl", "run.json"}


def stop() -> None:
    raise Interrupted(signal.SIGTERM)


def test_a_finished_run_is_not_repeated(tiny_models, data, tmp_path, capsys):
    flags = api_flags(
        tiny_models["t5"]["student"], data, tmp_path / "out", split_for_generation="dev_ppl", batch_size=8
    )
    path = simulate_api_main.main(flags)
    before = path.read_bytes()
    assert list(read(path)) == ["dev_ppl"]
    assert simulate_api_main.main(flags) == path
    assert "written already" in capsys.readouterr().out
    assert path.read_bytes() == before


@pytest.mark.parametrize("form", ["published", "chat", "jsonl"])
@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_an_empty_prediction(tiny_models, data, tmp_path, monkeypatch, family, form):
    """EOS is the first token that is written."""
    eos = load_tokenizer(tiny_models[family]["student"]).eos_token_id
    monkeypatch.setattr(TargetGenerator, "generate", lambda _, batch, k: torch.full((k * len(batch.rows), 1), eos))
    path = simulate_api_main.main(api_flags(tiny_models[family]["student"], data, tmp_path / "out", form=form))
    if form == "jsonl":
        for line in path.read_text().splitlines():
            for choice in json.loads(line)["response"]["choices"]:
                assert (choice["message"]["content"], choice["finish_reason"]) == ("", "stop")
                assert choice["logprobs"]["content"] == []
    else:
        dev = read(path)["dev"]
        assert (dev["prediction"], dev["tokens"], dev["logprobs"]) == ([""], [[]], [[]])
        assert dev["finish_reason"] == ["stop"]


# --------------------------------------------------------------------------------------------------- bytes and numbers


def completion(tokens: list[int], *, others: tuple[int, ...] = (), ended: bool = True) -> GeneratedCompletion:
    """Tokens as if they had been written, each beside the `others` as the most likely ones."""
    ids = torch.tensor([[*others, token] for token in tokens]).numpy()
    logs = torch.arange(1, 2 + len(others)).neg().float().expand(len(tokens), -1).numpy()
    return GeneratedCompletion(ids, logs, ended)


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_characters_split_over_tokens(byte_models, family):
    tokenizer = load_tokenizer(byte_models[family])
    ids = tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]
    choice = chat_choice(completion(ids, others=(tokenizer.eos_token_id,)), TokenBytes(tokenizer))
    assert (choice["message"]["content"], choice["finish_reason"]) == (SENTENCE, "stop")
    content = choice["logprobs"]["content"]
    pieces = [bytes(token["bytes"]) for token in content]
    assert len(pieces) == len(ids)
    assert b"".join(pieces).decode() == SENTENCE
    assert bytes([0xF0]) in pieces
    for token, piece in zip(content, pieces, strict=True):
        top = {bytes(each["bytes"]): each["logprob"] for each in token["top_logprobs"]}
        assert top == {tokenizer.eos_token.encode(): -1.0, piece: -2.0}


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_a_broken_character_ends_a_completion(byte_models, family):
    """Cut by the limit of length, or of bytes that are no character."""
    tokenizer = load_tokenizer(byte_models[family])
    token_bytes = TokenBytes(tokenizer)
    ids = tokenizer(SENTENCE, add_special_tokens=False)["input_ids"]
    for written in (completion(ids[:-2], ended=False), completion([*ids[:-2], ids[-1]])):
        choice = chat_choice(written, token_bytes)
        assert (choice["message"]["content"], choice["finish_reason"]) == ("漢é ", "length")
        assert b"".join(bytes(token["bytes"]) for token in choice["logprobs"]["content"]).decode() == "漢é "


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_random_bytes_are_always_spelled(byte_models, data, tmp_path, family):
    """An untrained model writes any byte."""
    path = simulate_api_main.main(
        api_flags(byte_models[family], data, tmp_path / "out", max_labels_length=12, n_completions=12, form="chat")
    )
    marked = 0
    for columns in read(path).values():
        for row in cells(columns):
            assert b"".join(bytes(item["bytes"]) for item in row["logprobs"]).decode() == row["prediction"]
            for token, item in zip(row["tokens"], row["logprobs"], strict=True):
                marked += item["token"] != token
                assert item["token"] == token.removeprefix("bytes:")
                for each in item["top_logprobs"]:
                    if "\\x" in each["token"]:
                        marked += 1
                        assert each["token"] == "".join(f"\\x{byte:02x}" for byte in each["bytes"])
    assert marked


def test_names_of_pieces():
    assert token_string(b" cat") == " cat"
    assert token_string(b"") == ""
    assert token_string(b"\xe6\xbc") == "bytes:\\xe6\\xbc"
    assert token_string(b" \xe6", mark="") == "\\x20\\xe6"


@pytest.mark.parametrize(
    ("pieces", "n"),
    [
        ([], 0),
        ([b"a", b""], 2),
        ([b"\xe6", b"\xbc\xa2", b"x"], 3),
        ([b"a", b"\xe6", b"\xbc"], 1),
        ([b"a", b"b\xe6", b"\xbc\xa2"], 3),
        ([b"a", b"b\xe6", b"x"], 1),
        ([b"\xe6", b"\xbc\xa2\xe6", b"x"], 0),  # the second piece ends a character and begins a broken one
        ([b"\xff"], 0),
    ],
)
def test_how_many_pieces_are_text(pieces, n):
    assert n_whole(pieces) == n
    b"".join(pieces[:n]).decode()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_text_of_a_tokenizer_is_spelled(tiny_tokenizers, family):
    tokenizer = tiny_tokenizers[family]
    token_bytes = TokenBytes(tokenizer)
    for text in tiny_sentences(20, seed=7):
        pieces = token_bytes.of(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert b"".join(pieces).decode().removeprefix(" ") == text
    assert token_bytes.of([tokenizer.eos_token_id]) == [tokenizer.eos_token.encode()]


def test_word_pieces():
    vocabulary = {name: i for i, name in enumerate(("[UNK]", "x", "the", "##ing", ".", "[SEP]"))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(cleanup=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[SEP]", unk_token="[UNK]")
    assert TokenBytes(tokenizer).of([2, 3, 4, 5]) == [b" the", b"ing", b" .", b"[SEP]"]


@pytest.mark.parametrize("family", ["t5", "gpt2"])
def test_tokens_that_the_tokenizer_has_not_are_left_out_but_keep_their_mass(tiny_models, tiny_dataset, family):
    model, tokenizer = load_model(tiny_models[family]["teacher"]), load_tokenizer(tiny_models[family]["teacher"])
    preprocessor = Preprocessor(tokenizer, model.config.is_encoder_decoder, 32, 8)
    data = TokenizedDatasets({"dev": tiny_dataset["dev"]}, preprocessor)
    batch = collate(preprocessor, data.split("dev"), range(4))
    with torch.no_grad():
        logs = target_logits(model, batch).log_softmax(-1)
    likely = logs.mean(0).argmax().item()
    known = torch.tensor([i for i in range(logs.shape[-1]) if i != likely])
    ids, logprobs = top_logprobs(model, batch, known, K)
    assert likely not in ids[:, :K]
    assert torch.equal(ids[:, K], target_labels(batch))
    torch.testing.assert_close(logprobs, logs.gather(1, ids))
    expected = logs.index_fill(1, torch.tensor([likely]), -torch.inf).topk(K).values
    torch.testing.assert_close(logprobs[:, :K], expected)


def test_log_probabilities_that_are_no_numbers_are_refused(tiny_models, tiny_dataset_path, tmp_path, monkeypatch):
    model, computed = tiny_models["gpt2"]["teacher"], simulate_api.top_logprobs

    def overflow(*args):
        ids, logprobs = computed(*args)
        return ids, logprobs * float("nan")

    monkeypatch.setattr(simulate_api, "top_logprobs", overflow)
    with pytest.raises(UserError, match=f"^{model}: its log-probabilities are NaN; try --mixed_precision no"):
        simulate_api_main.main(gen_flags(model, tiny_dataset_path, tmp_path / "out"))
