"""Flags: the default on each script, limits, and contradictions between two flags."""

from dataclasses import FrozenInstanceError, fields

import pytest

from src.config.errors import UserError
from src.config.flags.base import GROUPS, REPOSITORY, REQUIRED
from src.config.flags.create_student import CreateStudentArguments
from src.config.flags.generate import GenerateArguments, SimulateApiArguments
from src.config.flags.prepare import PrepareArguments, prepare_mode
from src.config.flags.profile import ProfileArguments
from src.config.flags.report import CompareArguments, ReportArguments
from src.config.flags.study import StudyArguments
from src.config.flags.train import EXPERIMENTS, DistillArguments, DistillStoredArguments, FineTuneArguments

SAMPLING = {"temperature": None, "top_p": None, "top_k": None}
SHARED = {
    "output_dir": REQUIRED,
    "dataset_path": REQUIRED,
    "text_column": "text",
    "target_column": "target",
    "id_column": None,
    "val_size": None,
    "test_size": None,
    "checkpoint_path": None,
    "max_input_length": 512,
    "max_labels_length": 128,
    "source_language": "",
    "target_language": "",
    "task_prompt": "",
    "truncation_side": "right",
    "special_tokens_in_text": False,
    "chat_template": False,
    "system_prompt": "",
    "mixed_precision": "no",
    "num_beams": 4,
    "model_generation_settings": True,
    "batch_size": 32,
    "seed": 42,
    "debug": False,
    "resume": True,
    "overwrite": False,
    "dry_run": False,
}
TRAINING = SHARED | {
    "compile": False,
    "gradient_checkpointing": False,
    "max_gpu_batch_size": 8,
    "learning_rate": 1e-5,
    "warmup_steps": None,
    "lr_scheduler_type": "linear",
    "label_smoothing": 0.0,
    "optimizer": "adamw",
    "optimizer_eps": 1e-8,
    "weight_decay": 1e-5,
    "clip_grad_norm": None,
    "several_references": "all",
    "epochs": 20,
    "n_patience_epochs": None,
    "do_train": True,
    "metrics": None,
    "metric_for_best_model": "rouge2_f",
    "bleu_tokenize": "13a",
    "greater_is_better": None,
    "save_checkpoint_every_n_steps": 0.55,
    "test_every_n_epochs": None,
    "keep_checkpoint_after_test": False,
    "save_state_every_n_minutes": 15.0,
    "report_to": "none",
    "log_every_n_steps": None,
}
STORED = TRAINING | {
    "task_prompt": None,
    "chat_template": None,
    "system_prompt": None,
    "experiment_config_key": REQUIRED,
    "experiment_config_path": "arg_configs/kd_experiment_configs.yaml",
    "list_experiments": False,
    "student_name": "t5-small",
    "student_state_dict_path": None,
    "ft_steps_at_end": None,
    "stop_training_after_n_epochs": None,
}
COMPARE = {"output_dirs": REQUIRED, "score": None, "profile_files": None, "seed": 42}
DEFAULTS = {
    CompareArguments: COMPARE,
    ReportArguments: COMPARE | {"output_file": REQUIRED, "picture": None, "n_examples": 100},
    FineTuneArguments: TRAINING | {"model_name": "t5-large", "lora_rank": None, "lora_alpha": None},
    DistillStoredArguments: STORED,
    DistillArguments: STORED
    | {
        "teacher_name": "t5-large",
        "teacher_state_dict_path": None,
        "teacher_dtype": "fp32",
        "teacher_device": None,
    },
    GenerateArguments: SHARED
    | {
        "model_name": "t5-large",
        "split_for_generation": None,
        "add_original_data": False,
        "generation_type": "beam_search",
        **SAMPLING,
        "num_return_sequences": 1,
        "generation_engine": "hf",
        "server_url": None,
        "server_model": None,
        "server_concurrency": 16,
        "top_logprobs": None,
    },
    SimulateApiArguments: SHARED
    | {
        "model_name": "t5-large",
        "split_for_generation": None,
        "generation_type": "sampling",
        **SAMPLING,
        "n_completions": 1,
        "top_logprobs": 5,
        "form": "published",
    },
    PrepareArguments: {
        "output_dir": REQUIRED,
        "file_name": "dataset.json",
        "dataset_name": None,
        "dataset_path": None,
        "text_column": "text",
        "target_column": "target",
        "id_column": None,
        "original_dataset_path": None,
        "generation_dataset_path": None,
        "logits_dataset_path": None,
        "train_size": None,
        "val_size": None,
        "test_size": None,
        "unlabeled_size": None,
        "val_ppl_size": None,
        "unlabeled_split": False,
        "filter_by_length": False,
        "max_input_length": 512,
        "max_labels_length": 128,
        "add_ft_split": "full",
        "load_use_unlabeled": True,
        "load_use_ft": True,
        "load_use_val_ppl": True,
        "use_unlabeled": True,
        "use_labeled": True,
        "use_original": True,
        "use_cut_off": True,
        "n_augmentations_per_example": None,
        "student_name": "t5-small",
        "special_tokens_in_text": False,
        "chat_template": False,
        "source_language": "",
        "target_language": "",
        "teacher_new_word_char": " ",
        "alignment": "edit",
        "max_failed_share": 0.1,
        "seed": 42,
        "debug": False,
    },
    CreateStudentArguments: {
        "output_dir": REQUIRED,
        "from_model": None,
        "keep_encoder_layers": None,
        "keep_decoder_layers": None,
        "n_encoder_layers": None,
        "n_decoder_layers": None,
        "family": "t5",
        "d_model": 128,
        "d_ff": None,
        "n_heads": 4,
        "dropout": 0.1,
        "max_position_embeddings": 512,
        "vocab_size": 2000,
        "tokenizer": None,
        "dataset_path": None,
        "text_column": "text",
        "target_column": "target",
        "val_size": None,
        "test_size": None,
        "seed": 42,
        "overwrite": False,
    },
    ProfileArguments: {
        "output_file_path": REQUIRED,
        "model_name": REQUIRED,
        "enc_layers_to_keep": None,
        "dec_layers_to_keep": None,
        "batch_size": (1,),
        "input_length": (128,),
        "target_length": (32,),
        "paired_lengths": False,
        "num_beams": (1,),
        "n_calls": 100,
        "warmup_calls": 10,
        "device": "cpu",
        "find_maximal_batch_size": False,
        "maximum_memory": None,
        "seed": 42,
        "overwrite": False,
    },
    StudyArguments: {
        "plan": REQUIRED,
        "output_dir": None,
        "jobs": 1,
        "executor": "local",
        "profile": None,
        "gpus": None,
        "keep_going": True,
        "dry_run": False,
        "seed": None,
    },
}
SCRIPTS = {
    FineTuneArguments: "ft_main.py",
    DistillArguments: "kd_main.py",
    DistillStoredArguments: "kd_dataset_with_logits_main.py",
    GenerateArguments: "gen_main.py",
    SimulateApiArguments: "simulate_api_main.py",
    PrepareArguments: "prepare_datasets_main.py",
    CreateStudentArguments: "create_student_main.py",
    ProfileArguments: "profile_main.py",
    StudyArguments: "study_main.py",
    CompareArguments: "compare_main.py",
    ReportArguments: "report_main.py",
}


def fine_tune(**flags):
    return FineTuneArguments(output_dir="out", dataset_path="data.json", **flags)


def generate(**flags):
    return GenerateArguments(output_dir="out", dataset_path="data.json", **flags)


def simulate(**flags):
    return SimulateApiArguments(output_dir="out", dataset_path="data.json", **flags)


def prepare(**flags):
    return PrepareArguments(output_dir="out", **flags)


def create(**flags):
    return CreateStudentArguments(output_dir="out", **flags)


@pytest.mark.parametrize("arguments_class", DEFAULTS, ids=lambda each: each.__name__)
def test_flags_and_defaults(arguments_class):
    assert {each.name: each.default for each in fields(arguments_class)} == DEFAULTS[arguments_class]


@pytest.mark.parametrize("arguments_class", DEFAULTS, ids=lambda each: each.__name__)
def test_script_description_and_sentences(arguments_class):
    assert arguments_class.script == SCRIPTS[arguments_class]
    assert f"python {arguments_class.script}" in arguments_class.__doc__
    for each in fields(arguments_class):
        assert each.metadata["sentence"].rstrip().endswith("."), each.name
        assert each.metadata["group"] in GROUPS


def test_arguments_are_frozen():
    with pytest.raises(FrozenInstanceError):
        fine_tune().seed = 1


@pytest.mark.parametrize(
    ("batch_size", "max_gpu_batch_size", "micro", "accumulation"),
    [(32, 8, 8, 4), (96, 96, 96, 1), (96, 48, 48, 2), (4, 8, 4, 1), (1, 1, 1, 1), (8, 1, 1, 8), (12, None, 12, 1)],
)
def test_accumulation(batch_size, max_gpu_batch_size, micro, accumulation):
    args = fine_tune(batch_size=batch_size, max_gpu_batch_size=max_gpu_batch_size)
    assert (args.micro_batch_size, args.accumulation_steps) == (micro, accumulation)


def test_batch_size_that_is_no_multiple():
    with pytest.raises(UserError, match=r"--batch_size 12 .* --max_gpu_batch_size 8; --max_gpu_batch_size 6 would fit"):
        fine_tune(batch_size=12)


@pytest.mark.parametrize("steps", [0.55, 1.0, 250.0, 1e-3])
def test_rhythm_is_a_share_or_a_count(steps):
    assert fine_tune(save_checkpoint_every_n_steps=steps).save_checkpoint_every_n_steps == steps


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"epochs": 0}, "--epochs: must be at least 1, not 0"),
        (
            {"metric_for_best_model": "nll", "greater_is_better": True},
            "--greater_is_better True: a lower nll is better; leave the flag out",
        ),
        ({"metric_for_best_model": "wer", "greater_is_better": True}, "a lower wer is better"),
        ({"greater_is_better": False}, "--greater_is_better False: a higher rouge2_f is better"),
        ({"learning_rate": 0.0}, "--learning_rate: must be greater than 0, not 0.0"),
        ({"warmup_steps": -1.0}, "--warmup_steps: must be at least 0, not -1.0"),
        ({"warmup_steps": 1.5}, "--warmup_steps: 1.5 is neither an integer number of updates nor a share"),
        ({"warmup_steps": 9.0, "lr_scheduler_type": "constant"}, "--warmup_steps 9: constant has no warm-up"),
        ({"lr_scheduler_type": "cosin"}, "--lr_scheduler_type: 'cosin' is not one of linear, .*; nearest: 'cosine'"),
        ({"label_smoothing": 1.0}, "--label_smoothing: must be at most 0.9"),
        ({"optimizer_eps": -1e-8}, "--optimizer_eps: must be greater than 0"),
        ({"weight_decay": -0.1}, "--weight_decay: must be at least 0"),
        ({"batch_size": 0}, "--batch_size: must be at least 1"),
        ({"max_gpu_batch_size": 0}, "--max_gpu_batch_size: must be at least 1"),
        ({"max_input_length": 0}, "--max_input_length: must be at least 1"),
        ({"max_labels_length": -1}, "--max_labels_length: must be at least 1"),
        ({"num_beams": 0}, "--num_beams: must be at least 1"),
        ({"n_patience_epochs": 0}, "--n_patience_epochs: must be at least 1"),
        ({"test_every_n_epochs": 0}, "--test_every_n_epochs: must be at least 1"),
        ({"save_checkpoint_every_n_steps": 0.0}, "--save_checkpoint_every_n_steps: must be greater than 0"),
        ({"save_checkpoint_every_n_steps": 1.5}, "--save_checkpoint_every_n_steps: 1.5 is neither"),
        ({"save_state_every_n_minutes": 0.0}, "--save_state_every_n_minutes: must be greater than 0"),
        ({"seed": -1}, "--seed: must be at least 0"),
        ({"seed": 2**32}, "--seed: must be at most 4294967295"),
        ({"mixed_precision": "fp8"}, "--mixed_precision: 'fp8' is not one of no, fp16, bf16; nearest: 'fp16'"),
        ({"metrics": ("rouge", "blue")}, "--metrics: 'blue' is not one of .*; nearest: 'gleu'"),
    ],
)
def test_training_limits(flags, message):
    with pytest.raises(UserError, match=message):
        fine_tune(**flags)


SERVER = {"generation_engine": "server", "server_url": "http://host:8000/v1", "generation_type": "sampling"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"server_url": None}, "--server_url None: is not a URL such as http://localhost:8000/v1"),
        ({"server_url": "host:8000/v1"}, "--server_url host:8000/v1: is not a URL"),
        ({"server_url": "http://"}, "--server_url http://: is not a URL"),
        ({"server_url": "http://host:99999/v1"}, "is not a URL"),
        ({"server_url": "http://[host/v1"}, "is not a URL"),
        ({"server_url": "http://host:8000/v1 beta"}, "is not a URL"),
        (
            {"server_url": "https://me:secret@host/v1"},
            "^--server_url: holds more .* environment variable KD_SERVER_KEY",
        ),
        ({"server_url": "https://host/v1?key=secret"}, "^--server_url: holds more than host and path"),
        ({"generation_type": "beam_search"}, "no server has beam_search with --num_beams 4; possible: .*sampling sam"),
        ({"generation_type": "sampling_beam_search"}, "no server has sampling_beam_search"),
        ({"checkpoint_path": "a.pt"}, "are the server's choice; remove --checkpoint_path and --mixed_precision"),
        ({"mixed_precision": "bf16"}, "are the server's choice; remove"),
        ({"server_concurrency": 0}, "--server_concurrency: must be at least 1"),
        ({"top_logprobs": 0}, "--top_logprobs: must be at least 1"),
        ({"generation_engine": "hf"}, "--server_url: is only for --generation_engine server"),
        ({"generation_engine": "hf", "server_url": None, "server_model": "a"}, "--server_model: is only for"),
        (
            {"generation_engine": "auto", "server_url": None, "top_logprobs": 5},
            "--top_logprobs: .*simulate_api_main.py",
        ),
    ],
)
def test_a_server_needs_its_flags_and_takes_not_all(flags, message):
    generate(**SERVER)
    generate(**SERVER | {"generation_type": "beam_search", "num_beams": 1})
    with pytest.raises(UserError, match=message) as raised:
        generate(**SERVER | flags)
    assert "secret" not in str(raised.value)


def test_required_flags_are_not_empty():
    with pytest.raises(UserError, match="--output_dir: must not be empty"):
        FineTuneArguments(output_dir="", dataset_path="data.json")


def test_default_experiments_lie_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = DistillStoredArguments(output_dir="out", dataset_path="data.json", experiment_config_key="logits_kd")
    assert args.experiment_file == REPOSITORY / EXPERIMENTS
    assert args.experiment_file.is_file()


def test_own_experiments_lie_where_the_user_is():
    args = DistillStoredArguments(
        output_dir="out", dataset_path="data.json", experiment_config_key="mine", experiment_config_path="mine.yaml"
    )
    assert str(args.experiment_file) == "mine.yaml"


@pytest.mark.parametrize(
    ("generation_type", "num_beams", "num_return_sequences"),
    [
        ("sampling", 4, 48),
        ("sampling_high", 1, 48),
        ("beam_search", 48, 48),
        ("sampling_beam_search", 4, 2),
        ("diverse_beam_search", 2, 2),
        ("diverse_beam_search", 48, 48),
    ],
)
def test_decoding_that_works(generation_type, num_beams, num_return_sequences):
    args = generate(generation_type=generation_type, num_beams=num_beams, num_return_sequences=num_return_sequences)
    assert args.num_return_sequences == num_return_sequences


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_return_sequences": 5}, "--num_return_sequences 5: beam_search finds at most --num_beams 4"),
        ({"generation_type": "sampling_beam_search", "num_return_sequences": 5}, "at most --num_beams 4"),
        ({"generation_type": "diverse_beam_search", "num_beams": 5}, "--num_beams 5: diverse_beam_search .* even"),
        ({"generation_type": "diverse_beam_search", "num_beams": 1}, "--num_beams 1: diverse_beam_search .* even"),
        (
            {"generation_type": "sampling_hi"},
            "--generation_type: 'sampling_hi' is not one of .*nearest: 'sampling_high'",
        ),
        ({"temperature": 0.0, "generation_type": "sampling"}, "--temperature: must be greater than 0"),
        ({"top_p": 0.0, "generation_type": "sampling"}, "--top_p: must be greater than 0"),
        ({"top_p": 1.5, "generation_type": "sampling"}, "--top_p: must be at most 1"),
        ({"top_k": -1, "generation_type": "sampling"}, "--top_k: must be at least 0"),
        ({"top_p": 0.9}, "--top_p 0.9: beam_search does not sample; sampling does"),
        ({"top_k": 0, "generation_type": "diverse_beam_search"}, "--top_k 0: diverse_beam_search does not sample"),
        ({"num_return_sequences": 0}, "--num_return_sequences: must be at least 1"),
        ({"split_for_generation": ("train", "train")}, "--split_for_generation: names a split twice"),
    ],
)
def test_decoding_mistakes(flags, message):
    with pytest.raises(UserError, match=message):
        generate(**flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"n_completions": 0}, "--n_completions: must be at least 1"),
        ({"top_logprobs": 0}, "--top_logprobs: must be at least 1"),
        ({"form": "completion"}, "--form: 'completion' is not one of published, chat, jsonl"),
        ({"generation_type": "greedy", "n_completions": 2}, "--n_completions 2: greedy writes the same completion"),
        ({"generation_type": "beam_search", "n_completions": 5}, "--n_completions 5: beam_search finds at most"),
        ({"split_for_generation": ("dev", "dev")}, "--split_for_generation: names a split twice"),
    ],
)
def test_simulation_mistakes(flags, message):
    with pytest.raises(UserError, match=message):
        simulate(**flags)


@pytest.mark.parametrize(
    ("paths", "mode"),
    [
        ({}, "original"),
        ({"dataset_path": "raw"}, "original"),
        ({"dataset_path": "mine.json", "dataset_name": ""}, "original"),
        ({"original_dataset_path": "a.json", "generation_dataset_path": "b.json"}, "generations"),
        ({"logits_dataset_path": "a.json"}, "logits"),
    ],
)
def test_prepare_mode(paths, mode):
    assert prepare_mode(prepare(**paths)) == mode


@pytest.mark.parametrize(
    "paths",
    [
        ("original_dataset_path",),
        ("generation_dataset_path",),
        ("original_dataset_path", "logits_dataset_path"),
        ("generation_dataset_path", "logits_dataset_path"),
        ("original_dataset_path", "generation_dataset_path", "logits_dataset_path"),
        ("dataset_path", "logits_dataset_path"),
        ("dataset_path", "original_dataset_path", "generation_dataset_path"),
    ],
)
def test_paths_that_are_no_mode(paths):
    with pytest.raises(
        UserError, match=f"{' with '.join('--' + path for path in paths)}: no mode takes these paths; give"
    ):
        prepare(**dict.fromkeys(paths, "a.json"))


MERGE = {"original_dataset_path": "a.json", "generation_dataset_path": "b.json"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"unlabeled_size": 10}, "--unlabeled_size 10 needs --unlabeled_split True"),
        ({"dataset_name": ""}, '--dataset_name "" needs a --dataset_path'),
        ({"dataset_name": "xsun"}, "--dataset_name: 'xsun' is not one of .*nearest: 'xsum'"),
        ({"train_size": 0}, "--train_size: must be at least 1"),
        ({"add_ft_split": "half"}, "--add_ft_split: 'half' is not one of full, filter, split"),
        ({"file_name": ""}, "--file_name : must be the name of a file"),
        ({"teacher_new_word_char": ""}, "--teacher_new_word_char: must not be empty"),
        (
            {"logits_dataset_path": "a", "use_labeled": False, "use_unlabeled": False},
            "--use_unlabeled and --use_labeled are both False: nothing to train on",
        ),
        (MERGE | {"n_augmentations_per_example": 0}, "--n_augmentations_per_example: must be at least 1"),
        (MERGE | {"use_unlabeled": False, "use_labeled": False, "use_original": False}, "are all False"),
    ],
)
def test_prepare_mistakes(flags, message):
    with pytest.raises(UserError, match=message):
        prepare(**flags)


@pytest.mark.parametrize(
    ("flags", "corpus"),
    [
        ({}, "xsum"),
        ({"dataset_path": "mine.csv"}, ""),
        ({"dataset_path": "mine.csv", "dataset_name": ""}, ""),
        ({"dataset_path": "raw", "dataset_name": "xsum"}, "xsum"),
        ({"dataset_name": "demo"}, "demo"),
    ],
)
def test_a_dataset_path_alone_is_no_corpus(flags, corpus):
    assert prepare(**flags).corpus == corpus


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"val_size": 1.5}, "--val_size: 1.5 is neither a number of rows nor a share below 1"),
        ({"test_size": 0.0}, "--test_size: must be greater than 0"),
        ({"val_size": 0.1}, "--val_size 0.1: the corpus 'xsum' needs a number of rows, not a share"),
        ({"text_column": "document"}, "--text_column document: the corpus 'xsum' has columns of its own"),
        ({"id_column": "id", "logits_dataset_path": "a.json"}, "--id_column id: an API file has columns of its own"),
    ],
)
def test_mistakes_of_columns_and_sizes(flags, message):
    with pytest.raises(UserError, match=message):
        prepare(**flags)
    if "neither" in message or "greater" in message:
        with pytest.raises(UserError, match=message):
            fine_tune(**flags)


def test_prepare_flags_that_go_together():
    assert prepare(unlabeled_size=10, unlabeled_split=True).unlabeled_size == 10
    assert prepare(logits_dataset_path="a.json", n_augmentations_per_example=0).n_augmentations_per_example == 0


@pytest.mark.parametrize(
    "flags",
    [
        {"from_model": "t5-large", "keep_decoder_layers": (0, -1)},
        {"from_model": "t5-large", "n_encoder_layers": 4, "keep_decoder_layers": (0, -1)},
        {"tokenizer": "t5-small", "n_decoder_layers": 1},
        {"dataset_path": "data.json", "family": "gpt2", "d_model": 64},
    ],
)
def test_students_that_can_be_made(flags):
    args = create(**flags)
    assert {name: getattr(args, name) for name in flags} == flags


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--tokenizer or --dataset_path"),
        ({"tokenizer": "t5-small", "dataset_path": "data.json"}, "--tokenizer or --dataset_path"),
        ({"from_model": "m", "n_decoder_layers": 2, "keep_decoder_layers": (0,)}, "--keep_decoder_layers and --n_dec"),
        ({"from_model": "m", "d_model": 64}, "--d_model: is for a new model"),
        ({"from_model": "m", "tokenizer": "n"}, "--tokenizer: is for a new model"),
        ({"tokenizer": "n", "keep_encoder_layers": (0,)}, "--keep_encoder_layers: needs --from_model"),
        ({"tokenizer": "n", "d_model": 30}, "--d_model 30 is not a multiple of --n_heads 4"),
        ({"tokenizer": "n", "family": "bert"}, "--family: 'bert' is not one of .*nearest: 'bart'"),
        ({"tokenizer": "n", "dropout": 1.5}, "--dropout: must be at most 1"),
        ({"tokenizer": "n", "n_encoder_layers": 0}, "--n_encoder_layers: must be at least 1"),
    ],
)
def test_student_mistakes(flags, message):
    with pytest.raises(UserError, match=message):
        create(**flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lora_rank": 0}, "--lora_rank: must be at least 1"),
        ({"lora_alpha": 8.0}, "--lora_alpha 8: needs --lora_rank"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, "--lora_alpha: must be greater than 0"),
        ({"lora_rank": 2, "compile": True}, "--lora_rank 2: not with --compile True"),
    ],
)
def test_adapter_mistakes(flags, message, monkeypatch):
    monkeypatch.setattr("src.config.flags.train.find_spec", lambda _: "installed")
    with pytest.raises(UserError, match=message):
        fine_tune(**flags)
