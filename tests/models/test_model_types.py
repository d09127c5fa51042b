"""Every generating model type of transformers passes the whole pipeline, or is refused in one line."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import VOCAB_SIZE, WORDS, slow
from model_types import ALL_TYPES, NotBuiltError, write_tiny_model
from tiny_runs import ft_flags, gen_flags, kd_flags, read

import ft_main
import gen_main
import kd_main
from src.config.errors import UserError
from src.models.loading import load_saved
from src.models.new_tokenizers import train_tokenizer

QUICK = ("mixtral", "led", "fsmt", "rwkv", "whisper")
REFUSED = {  # before training, and what is said
    **dict.fromkeys((
        "audioflamingo3", "emu3", "glmasr", "granite_speech", "granite_speech_plus", "mllama", "musicflamingo",
        "musicgen", "musicgen_melody", "nemo_speechlm", "qwen2_audio", "qwen3_asr", "vibevoice_asr", "voxtral",
        "voxtral_realtime", "whisper"), "transformers has no class for it that generates text"),
    **dict.fromkeys(("cpmant", "xlm", "xlnet"), "also reads the tokens that follow"),
    **dict.fromkeys((
        "blt", "camembert", "data2vec-text", "recurrent_gemma", "roberta", "roberta-prelayernorm", "rwkv", "trocr",
        "xlm-roberta", "xlm-roberta-xl", "xlstm", "xmod"), "gives other logits for a text in a batch"),
    **dict.fromkeys(("fsmt", "prophetnet"), "its output projection does not read one state for each token"),
    "reformer": "cannot be trained here: If training, make sure that config.axial_pos_shape factors",
}  # fmt: skip
NOT_BUILT = {  # of sizes as in SIZES
    "dots3_note": "`per_layer_config` keys must be integer layer indices",
    "gemma3n": "library but it was not found",  # pillow, then timm
    "gemma4_assistant": "hidden_size_per_layer_input must be 0",  # a draft model for another one
    "gemma4_unified_assistant": "The set of layer types producing a cache is different",  # as well
}
FLAGS = {"max_labels_length": 4, "max_input_length": 16, "batch_size": 4}
TRAINING = {"epochs": 1, "max_gpu_batch_size": 4, "metric_for_best_model": "nll", "num_beams": 2}
GENERATING = {"num_beams": 2, "num_return_sequences": 2}


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> dict[str, Any]:
    """One tokenizer and two datasets for all types: a few short rows, and the same with a long one."""
    rng, root = random.Random(0), tmp_path_factory.mktemp("shared")

    def columns(n_rows: int) -> dict[str, list[str]]:
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(3, 6))) for _ in range(n_rows)]
        return {"text": texts, "target": [text.split()[0] for text in texts]}

    short = {"train": columns(8), "dev": columns(4), "test": columns(4)}
    long = short | {"train": {name: [*texts[1:], " ".join(WORDS * 10)] for name, texts in short["train"].items()}}
    for name, content in (("short", short), ("long", long)):
        (root / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    texts = [text for split in short.values() for text in split["text"]]
    tokenizer = train_tokenizer(texts, VOCAB_SIZE, family="gpt2")
    return {"tokenizer": tokenizer, "short": root / "short.json", "long": root / "long.json"}


def run(main: Any, words: list[str]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    main(words)


def whole_road(model_type: str, shared: dict[str, Any], root: Path) -> None:
    """Fine-tune, generate, distill, with weights in every form; UserError if the type is refused before training."""
    teacher, student, data = root / "teacher", root / "student", shared["short"]
    for seed, folder in enumerate((teacher, student)):
        write_tiny_model(model_type, folder, shared["tokenizer"], seed=seed)
    try:
        run(ft_main.main, ft_flags(str(teacher), data, root / "ft", **FLAGS, **TRAINING))
    except UserError:
        assert not (root / "ft").exists() or not list((root / "ft").iterdir()), "refused after something was written"
        raise
    [bare] = [path for path in (root / "ft").glob("*__model.pt") if "last" not in path.name]
    model, values = str(root / "ft" / "model"), torch.load(bare, weights_only=True)
    saved = load_saved(Path(model))
    assert all(torch.equal(value, values[name]) for name, value in saved.state_dict().items())
    saved.load_state_dict(values, strict=True)
    for kind, name, path in (("sampling", model, None), ("beam_search", str(student), bare)):
        flags = {"generation_type": kind, "checkpoint_path": path, **FLAGS, **GENERATING}
        run(gen_main.main, gen_flags(name, data, root / kind, **flags))
        assert len(read(root / kind / "generated_datasets.json")["train"]["generated"]) == 16
    models = {"teacher": str(teacher), "student": str(student)}
    weights = {"teacher_state_dict_path": bare, "student_state_dict_path": f"{model}/model.safetensors"}
    run(kd_main.main, kd_flags(models, data, root / "kd", **weights, **FLAGS, **TRAINING))

    far = FLAGS | {"max_labels_length": 70, "max_input_length": 100}
    try:
        run(ft_main.main, ft_flags(str(teacher), shared["long"], root / "far", dry_run=True, **far | TRAINING))
    except UserError as error:
        assert "has positions for 64" in str(error)


@pytest.mark.parametrize("model_type", [*QUICK, *slow(*(name for name in ALL_TYPES if name not in QUICK))])
def test_the_whole_road(model_type, shared, tmp_path):
    try:
        whole_road(model_type, shared, tmp_path)
    except NotBuiltError as error:
        assert NOT_BUILT.get(model_type, "not listed") in str(error)
    except UserError as error:
        assert "\n" not in str(error)
        assert REFUSED.get(model_type, "not listed") in str(error)
    else:
        assert model_type not in REFUSED
        assert model_type not in NOT_BUILT
