"""Time and peak memory of preparing a large API file and training on it.

    python benchmarks/api_size.py --rows 35000 --output_dir outputs/api_size

The script writes synthetic completions as JSON Lines, prepares them, and times a few training steps. The student is a
new model with one token per word; the teacher splits every eighth word into two tokens. No completion is cut off.
"""

import argparse
import json
import multiprocessing
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
N_WORDS = 4_000
LETTERS = "abcdefghijklmnopqrstuvwxyz"
BATCH, STEPS = 96, 30  # targets per step, and timed steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=35_000, help="inputs")
    parser.add_argument("--completions", type=int, default=5, help="completions per input")
    parser.add_argument("--tokens", type=int, default=48, help="tokens per completion")
    parser.add_argument("--top", type=int, default=20, help="log-probabilities per token")
    parser.add_argument("--form", choices=("completion", "chat"), default="completion")
    parser.add_argument(
        "--file_name",
        default="prepared.arrow",
        help="file that prepare_datasets_main.py writes; use .json for the published form",
    )
    flags = parser.parse_args()
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    source = flags.output_dir / f"api_{flags.form}_{flags.rows}.jsonl"
    words = made_up_words()
    if not source.exists():
        write(source, flags, words)
    print(f"{source.name}: {source.stat().st_size / 1e9:.2f} GB")
    student = flags.output_dir / "student"
    if not student.exists():
        write_student(student, words)
    started = time.time()
    run("prepare_datasets_main.py", f"--logits_dataset_path {source} --student_name {student}"
        f" --output_dir {flags.output_dir} --file_name {flags.file_name}")  # fmt: skip
    written = flags.output_dir / flags.file_name
    files = written.iterdir() if written.is_dir() else [written]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024  # kilobytes on Linux
    print(
        f"prepared in {time.time() - started:.0f} s, peak memory {peak / 1e9:.2f} GB, "
        f"{sum(file.stat().st_size for file in files) / 1e9:.2f} GB written"
    )
    learning = multiprocessing.get_context("spawn").Process(target=time_training, args=(written, student))
    learning.start()
    learning.join()


def time_training(prepared: Path, student: Path) -> None:
    """Time the data loading and the training step, for the tiny student and for one of 5 million parameters."""
    sys.path.insert(0, str(REPOSITORY))
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    from src.config.experiments.schema import LossEntry
    from src.data.formats import read_datasets
    from src.distillation.capture import capture_states
    from src.distillation.objectives import Window, distillation_loss
    from src.distillation.teachers import StoredTeacher
    from src.models.loading import load_tokenizer
    from src.tokens.batch import collate
    from src.tokens.order import chunks, epoch_order
    from src.tokens.preprocessing import Preprocessor
    from src.tokens.tokenized import TokenizedDatasets

    started = time.time()
    preprocessor = Preprocessor(load_tokenizer(str(student)), True, max_input_length=256, max_labels_length=128)
    split = TokenizedDatasets(read_datasets(prepared), preprocessor).split("train_0")
    opened = time.time() - started
    rows = list(chunks(epoch_order(len(split), seed=0, epoch=0), BATCH))[:STEPS]
    entry = LossEntry(name="logits", logits_weight=1.0)
    wide = {"d_model": 256, "d_kv": 64, "num_heads": 4, "d_ff": 1024, "num_layers": 2, "num_decoder_layers": 2}
    for name, changes in (("tiny", {}), ("5M", wide)):
        model = AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(student, **changes))
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        waited, learned = [], []
        for chosen in rows:
            began = time.perf_counter()
            batch = collate(preprocessor, split, chosen)
            there = time.perf_counter()
            states, taught = capture_states(model, batch, entry, {}), StoredTeacher()(batch, entry)
            distillation_loss(states, taught, batch, entry, Window(len(chosen), 1))[0].backward()
            optimizer.step()
            waited.append(there - began)
            learned.append(time.perf_counter() - there)
        n = sum(each.numel() for each in model.parameters())
        print(
            f"student of {n:,} parameters ({name}), {BATCH} targets per step: {1e3 * np.median(waited):.0f} ms for the "
            f"data, {1e3 * np.median(learned):.0f} ms for the step"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"opened and tokenized train_0 of {len(split)} rows in {opened:.1f} s; peak memory {peak / 1e9:.2f} GB")


def run(script: str, flags: str) -> None:
    """Run a script of this repository as a user would."""
    print(f"python {script} {flags}", flush=True)
    subprocess.run([sys.executable, str(REPOSITORY / script), *flags.split()], check=True, cwd=Path.cwd())


def write_student(folder: Path, words: list[str]) -> None:
    """Write a T5 with one token for each word and each letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    pieces = [(f"▁{word}", -8.0) for word in words] + [(letter, -12.0) for letter in f"▁{LETTERS}"]
    backend = Tokenizer(models.Unigram(special + pieces, unk_id=2))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    sizes = {"d_model": 16, "d_kv": 8, "num_heads": 2, "d_ff": 32, "num_layers": 1, "vocab_size": len(special + pieces)}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    T5ForConditionalGeneration(T5Config(**sizes, **ids)).save_pretrained(folder)


def made_up_words() -> list[str]:
    rng = random.Random(0)
    words = {"".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(8 * N_WORDS)}
    return sorted(words)[::8][:N_WORDS]


def write(path: Path, flags: argparse.Namespace, words: list[str]) -> None:
    """Write one response per row, with `completions` choices each."""
    rng = random.Random(1)
    tokens = [[f" {word}"] if i % 8 else [f" {word[:2]}", word[2:]] for i, word in enumerate(words)]
    tokens = [[part for part in parts if part] for parts in tokens]
    strings = [f" {word}" for word in words]
    choice_of = completion_choice if flags.form == "completion" else chat_choice
    with path.open("w", encoding="utf-8") as file:
        for _ in range(flags.rows):
            choices = []
            for _ in range(flags.completions):
                written: list[str] = []
                while len(written) < flags.tokens:
                    written += rng.choice(tokens)
                start = rng.randrange(len(strings))
                others = [strings[(start + 7 * i) % len(strings)] for i in range(flags.top * len(written))]
                choices.append(choice_of(written, others, flags.top))
            line = {"text": " ".join(rng.choices(words, k=20)), "target": "a", "response": {"choices": choices}}
            file.write(json.dumps(line) + "\n")


def tops(written: list[str], others: list[str], k: int) -> list[dict[str, float]]:
    """For each token, the log-probabilities of the token and k − 1 other strings: 1/2, 1/4, …"""
    return [
        {token: -0.6931}
        | {other: round(-0.6931 * (j + 2), 4) for j, other in enumerate(others[i * k + 1 : (i + 1) * k])}
        for i, token in enumerate(written)
    ]


def completion_choice(written: list[str], others: list[str], k: int) -> dict:
    logprobs = {
        "tokens": written,
        "token_logprobs": [-0.6931] * len(written),
        "top_logprobs": tops(written, others, k),
    }
    return {"text": "".join(written), "finish_reason": "stop", "logprobs": logprobs}


def chat_choice(written: list[str], others: list[str], k: int) -> dict:
    def entry(token: str, value: float) -> dict:
        return {"token": token, "logprob": value, "bytes": list(token.encode())}

    content = [
        entry(token, -0.6931) | {"top_logprobs": [entry(other, value) for other, value in top.items()]}
        for token, top in zip(written, tops(written, others, k), strict=True)
    ]
    return {"message": {"content": "".join(written)}, "finish_reason": "stop", "logprobs": {"content": content}}


if __name__ == "__main__":
    main()
