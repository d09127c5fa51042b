"""Does a large API file fit? Writes synthetic completions as JSON Lines, prepares them, prints seconds and peak memory.

    python benchmarks/api_size.py --rows 35000 --output_dir outputs/api_size

The student is a new model with a tokenizer trained on the text; the teacher's tokens are made up: half of the words
are one token, half are two. Every completion ends by itself.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
N_WORDS = 4_000
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=35_000, help="inputs")
    parser.add_argument("--completions", type=int, default=5, help="completions of each input")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each completion")
    parser.add_argument("--top", type=int, default=20, help="log-probabilities at each token")
    parser.add_argument("--form", choices=("completion", "chat"), default="completion")
    parser.add_argument(
        "--file_name", default="prepared.arrow", help="what prepare writes; .json for the published form"
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
        text = {"train": {"text": [" ".join(words)] * 2, "target": [" ".join(reversed(words))] * 2}}
        (flags.output_dir / "words.json").write_text(json.dumps(text), encoding="utf-8")
        run("create_student_main.py", f"--dataset_path {flags.output_dir}/words.json --d_model 16 --n_heads 2"
            f" --output_dir {student}")  # fmt: skip
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


def run(script: str, flags: str) -> None:
    """A script of the repository, as a user starts it."""
    print(f"python {script} {flags}", flush=True)
    subprocess.run([sys.executable, str(REPOSITORY / script), *flags.split()], check=True, cwd=Path.cwd())


def made_up_words() -> list[str]:
    rng = random.Random(0)
    words = {"".join(rng.choices(LETTERS, k=rng.randint(2, 9))) for _ in range(2 * N_WORDS)}
    return sorted(words)[:N_WORDS]


def write(path: Path, flags: argparse.Namespace, words: list[str]) -> None:
    """Rows of responses, each with `completions` choices."""
    rng = random.Random(1)
    tokens = [[f" {word}"] if i % 2 else [f" {word[:2]}", word[2:]] for i, word in enumerate(words)]
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
    """Of each token, itself and the next k − 1 strings, as likely as 1/2, 1/4, …"""
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
