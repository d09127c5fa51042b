"""Instruct models through the scripts: `--chat_template True`."""

import json
from pathlib import Path

import pytest
from chat_tokenizers import CHATML, CHATS, HEADERS
from conftest import tiny_sizes
from tiny_runs import TINY, argv, ft_flags, gen_flags, kd_flags, read

import create_student_main
import ft_main
import gen_main
import kd_dataset_with_logits_main
import kd_main
import prepare_datasets_main
import simulate_api_main
from src.config.errors import UserError
from src.config.flags.train import DistillArguments
from src.models.folders import TrainedPrompt, write_model_folder
from src.models.loading import load_tokenizer
from src.models.new_models import build_from_scratch
from src.tokens.chat_preprocessing import ChatPreprocessor
from src.training.phase import with_teacher_settings

CHAT = {"chat_template": True, "max_input_length": 96, "system_prompt": "Be brief.", "epochs": 1}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, dict[str, str]]:
    """{template: {"teacher": folder, "student": folder}}"""
    root, folders = tmp_path_factory.mktemp("chat"), {}
    for name in ("chatml", "headers"):
        tokenizer = CHATS[name]()
        sizes = tiny_sizes(tokenizer, d_model=16, n_layers=2)
        model = build_from_scratch("llama", sizes, seed=1)
        for weights in model.parameters():
            weights.data *= 8  # so that predictions differ
        teacher = str(write_model_folder(root / f"{name}_teacher", model, tokenizer, "A test's.\n"))
        student = create_student_main.main(
            ["--from_model", teacher, "--n_decoder_layers", "1", "--output_dir", str(root / f"{name}_student")]
        )
        folders[name] = {"teacher": teacher, "student": str(student)}
    return folders


@pytest.fixture(scope="module")
def trained(models, tiny_dataset_path, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "ft"
    ft_main.main(
        ft_flags(models["headers"]["teacher"], tiny_dataset_path, out, task_prompt="again:", **CHAT, learning_rate=1e-5)
    )
    return out


def answers(folder: Path, texts: list[str]) -> list[str]:
    """What the code in a model card writes."""
    code = (folder / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    names: dict = {}
    exec(code, names)
    return [names["answer"](text) for text in texts]


def predictions(out: Path) -> list[str]:
    return read(out / "eval_generations.json")["test__epoch-1__step-1"]["predictions"]


def test_the_model_card_s_pipeline_writes_the_suite_s_predictions(trained, tiny_dataset):
    stored = read(trained / "model" / "task_prompt.json")
    assert stored == {"task_prompt": "again:", "chat_template": True, "system_prompt": "Be brief."}
    expected = predictions(trained)
    assert answers(trained / "model", tiny_dataset["test"]["text"]) == expected
    assert len(set(expected)) > 4


def test_the_exported_folder_stops_at_the_end_of_turn(trained, models):
    ends = read(trained / "model" / "generation_config.json")["eos_token_id"]
    tokenizer = load_tokenizer(str(trained / "model"))
    assert set(ends) >= {tokenizer.convert_tokens_to_ids("<|eot|>"), tokenizer.eos_token_id}
    assert tokenizer.chat_template == HEADERS and tokenizer.eos_token == "</s>"


def test_the_kd_scripts_take_the_teacher_s_template(trained, models, tiny_dataset_path, tmp_path, capsys):
    pair = {"teacher": str(trained / "model"), "student": models["headers"]["student"]}
    kd_main.main(kd_flags(pair, tiny_dataset_path, tmp_path / "kd", max_input_length=96, epochs=1))
    said = capsys.readouterr().out
    assert "--task_prompt 'again:' --chat_template True --system_prompt 'Be brief.': as --teacher_name" in said
    flags = read(tmp_path / "kd" / "run.json")["flags"]
    assert (flags["chat_template"], flags["system_prompt"], flags["task_prompt"]) == (True, "Be brief.", "again:")
    assert read(tmp_path / "kd" / "model" / "task_prompt.json")["chat_template"] is True
    assert "--student_name" not in said
    gen_main.main(gen_flags(str(tmp_path / "kd" / "model"), tiny_dataset_path, tmp_path / "gen", max_input_length=96))
    said = capsys.readouterr().out
    assert (
        "warning: --task_prompt '': --model_name" in said and "was trained with --task_prompt 'again:' --chat" in said
    )
    assert said.count("has a chat template, which is not used") == 1


def test_a_teacher_trained_without_the_template_is_warned_of(models, tiny_dataset_path, tmp_path, capsys):
    tokenizer = load_tokenizer(models["chatml"]["teacher"])
    model = build_from_scratch("llama", tiny_sizes(tokenizer, d_model=16, n_layers=1), seed=1)
    folder = str(write_model_folder(tmp_path / "plain", model, tokenizer, "A test's.\n", TrainedPrompt("say:")))
    gen_main.main(gen_flags(folder, tiny_dataset_path, tmp_path / "gen", max_input_length=96, chat_template=True))
    given = "warning: --task_prompt '' --chat_template True --system_prompt '': --model_name"
    said = capsys.readouterr().out
    assert f"{given} {folder} was trained with --task_prompt 'say:' --chat_template False\n" in said


@pytest.mark.slow
def test_an_instruct_teacher_needs_no_prompt(models, tiny_dataset, tiny_dataset_path, tmp_path):
    """And with beams and a switch for thinking, pipeline writes the same."""
    flags = {**CHAT, "system_prompt": None, "num_beams": 2, "learning_rate": 1e-5}
    kd_main.main(kd_flags(models["chatml"], tiny_dataset_path, tmp_path, **flags))
    flags = read(tmp_path / "run.json")["flags"]
    assert (flags["task_prompt"], flags["system_prompt"]) == ("", "")
    assert answers(tmp_path / "model", tiny_dataset["test"]["text"]) == predictions(tmp_path)


@pytest.mark.slow
def test_a_stored_teacher_s_targets_are_answers(models, tiny_dataset_path, tmp_path):
    """From a simulated API to a student: labels follow the opened turn, and the tokens stored are theirs."""
    model = models["headers"]["teacher"]
    shared = {"chat_template": True, "max_input_length": 96, "system_prompt": "Be brief."}
    api = simulate_api_main.main(gen_flags(model, tiny_dataset_path, tmp_path / "api", max_labels_length=24, **shared))
    stored = argv({"logits_dataset_path": api, "student_name": model, "output_dir": tmp_path, "chat_template": True})
    columns = read(prepare_datasets_main.main(stored))["train_0"]
    made = ChatPreprocessor(load_tokenizer(model), False, 96, 64)
    labels = made.encode_labels(columns["target"]).tokens
    for row, tokens in enumerate(columns["tokens"]):
        expected = labels[row].tolist()
        kept = [label in stored for label, stored in zip(expected, tokens, strict=True)]
        assert all(kept[:-1]) and tokens[-1] in ([], [made.end])
    flags = {"student_name": models["headers"]["student"], "dataset_path": tmp_path / "dataset.json", "epochs": 1}
    named = {"experiment_config_key": "logits_kd", "output_dir": tmp_path / "kd"}
    kd_dataset_with_logits_main.main(argv({**TINY, **shared, **flags, **named}))


def test_without_a_template_the_flags_of_one_stay_unset():
    """As in folders of runs from before there were such flags, which therefore continue."""
    config = DistillArguments(output_dir="o", dataset_path="d", experiment_config_key="k")
    resolved = with_teacher_settings(config)
    assert (resolved.chat_template, resolved.system_prompt, resolved.task_prompt) == (None, None, "summarize: ")


# ------------------------------------------------------------------------------------------------------------ refusals


def test_models_without_a_template_are_refused(tiny_models, tiny_dataset_path, tmp_path):
    for family, expected in [("t5", "is an encoder-decoder"), ("gpt2", "has no chat template")]:
        flags = ft_flags(tiny_models[family]["student"], tiny_dataset_path, tmp_path / "out", chat_template=True)
        with pytest.raises(UserError, match=f"^--chat_template True: .*{expected}"):
            ft_main.main(flags)
    with pytest.raises(UserError, match="--system_prompt: needs --chat_template True"):
        ft_main.main(ft_flags(tiny_models["gpt2"]["student"], tiny_dataset_path, tmp_path / "out", system_prompt="a"))
    assert not (tmp_path / "out").exists()


def test_teacher_and_student_must_share_a_template(models, tiny_dataset_path, tmp_path):
    tokenizer = load_tokenizer(models["chatml"]["student"])
    model = build_from_scratch("llama", tiny_sizes(tokenizer, d_model=16, n_layers=1), seed=1)
    for template, expected in [
        (None, "the student's tokenizer has no chat template"),
        (CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|>{% endfor"), "must share a chat template; they write"),
    ]:
        tokenizer.chat_template = template
        student = str(write_model_folder(tmp_path / "student", model, tokenizer, "A test's.\n"))
        flags = kd_flags({**models["chatml"], "student": student}, tiny_dataset_path, tmp_path / "out", **CHAT)
        with pytest.raises(UserError, match=expected):
            kd_main.main(flags)
    assert not (tmp_path / "out").exists()


def test_several_messages_need_the_template(models, tmp_path, tiny_dataset):
    pair = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "a cat"}]
    data = {"train": {"messages": [pair, [*pair, *pair]]}}
    (tmp_path / "d.json").write_text(json.dumps(data))
    model, out = models["chatml"]["student"], tmp_path / "out"
    with pytest.raises(
        UserError, match="d.json: split 'train', row 1: has several messages, which need --chat_template"
    ):
        ft_main.main(ft_flags(model, tmp_path / "d.json", out, max_input_length=96))
    ft_main.main(ft_flags(model, tmp_path / "d.json", out, **CHAT))
