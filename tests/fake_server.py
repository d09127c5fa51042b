"""A small server with the OpenAI-compatible completions API, which writes random words and fails as planned."""

import json
import random
import select
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from conftest import WORDS

# "status": (number, headers, body); "cut", "drop"; "answer" or "choice": the fields that differ; "late": a
# refusal once so many requests have come.
Failure = tuple[str, Any]


class FakeServer(ThreadingHTTPServer):
    """Answers as vLLM does, or with less.

    failures: what happens to the next completions that are asked for, one after the other. names_ids, takes_ids,
    takes_n, gives_seeds (to each of n): what the server can do. requests: the bodies that came. After `gone_after` of
    them it drops every one, after `hangs_after` it does not answer, and calls `at_hang` once.
    """

    daemon_threads, block_on_close = True, False

    def __init__(self, tokenizer: Any, **features: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokenizer, self.lock = tokenizer, threading.Lock()
        self.names_ids = self.takes_ids = self.takes_n = True
        self.models, self.key, self.seconds = ["smol"], "", 0.0
        self.gone_after = self.hangs_after = float("inf")
        self.gives_seeds = True
        self.at_hang, self.wrong_ids = lambda: None, False
        self.failures: list[Failure] = []
        self.requests: list[dict[str, Any]] = []
        self.n_open = self.most_open = 0
        vars(self).update(features)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *_: object) -> None:
        """Clients that go away are no error here."""

    def choice(self, request: dict[str, Any], index: int) -> dict[str, Any]:
        """Words that depend on the prompt and the seed alone; every third target is cut off."""
        draw = random.Random(f"{request['prompt']} {request['seed'] + index * self.gives_seeds}")
        is_cut = draw.random() < 1 / 3
        text = " " + " ".join(draw.choices(WORDS, k=draw.randint(1, 4)))
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        written = ids if is_cut else [*ids, self.tokenizer.eos_token_id]
        choice = {"index": index, "text": text, "finish_reason": "length" if is_cut else "stop"}
        if self.names_ids and request.get("return_token_ids"):
            choice["token_ids"] = [token + 1 for token in ids] if self.wrong_ids else written
        if request.get("logprobs"):
            choice["logprobs"] = self.logprobs(written, request)
        return choice

    def logprobs(self, written: list[int], request: dict[str, Any]) -> dict[str, list]:
        by_id = self.names_ids and request.get("return_tokens_as_token_ids")

        def name(token: int) -> str:
            text = self.tokenizer.decode([token])
            return f"token_id:{token}" if by_id else text

        tops = [
            {token: -0.25} | {(token + 1 + i) % len(self.tokenizer): -2.0 - i for i in range(request["logprobs"] - 1)}
            for token in written
        ]
        return {
            "text_offset": [0] * len(written),
            "tokens": [name(token) for token in written],
            "token_logprobs": [-0.25] * len(written),
            "top_logprobs": [{name(token): value for token, value in top.items()} for top in tops],
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""

    def do_GET(self) -> None:
        if not self.path.startswith("/v1/"):
            return self.reply({"detail": "Not Found"}, 404)
        return self.reply({"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(body)
            server.n_open += 1
            server.most_open = max(server.most_open, server.n_open)
            number = len(server.requests)
            kind, detail = server.failures.pop(0) if server.failures else ("", None)
        kind = "drop" if number > server.gone_after else kind
        time.sleep(server.seconds)
        if number > server.hangs_after:
            if number == server.hangs_after + 1:
                server.at_hang()
            select.select([self.connection], [], [])  # until the client goes away
        try:
            self.answer(body, kind, detail)
        finally:
            with server.lock:
                server.n_open -= 1

    def answer(self, body: dict[str, Any], kind: str, detail: Any) -> None:
        server = self.server
        if server.key and self.headers["Authorization"] != f"Bearer {server.key}":
            said = f"Incorrect API key {self.headers['Authorization']}"
            return self.reply({"error": {"message": said}}, 401)
        if isinstance(body["prompt"], list) and not server.takes_ids:
            return self.reply({"detail": "prompt: expected a string"}, 422)
        if body["n"] > 1 and not server.takes_n:
            return self.reply({"error": {"message": "n must be 1"}}, 400)
        if kind == "status":
            number, headers, said = detail
            return self.reply(said, number, headers)
        if kind == "late":
            while len(server.requests) < detail:
                time.sleep(0.005)
            return self.reply({"message": "late refusal"}, 400)
        if kind == "drop":
            self.close_connection = True
            return None
        choices = [server.choice(body, i) for i in range(body["n"])]
        prompt = body["prompt"]
        n_read = len(prompt if isinstance(prompt, list) else server.tokenizer(prompt)["input_ids"])
        answer = {"choices": choices, "usage": {"prompt_tokens": n_read}}
        if kind == "choice":
            choices[0] |= detail
        return self.reply(answer | (detail if kind == "answer" else {}), cut=kind == "cut")

    def reply(self, answer: Any, status: int = 200, headers: Any = (), *, cut: bool = False) -> None:
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut


@contextmanager
def serving(tokenizer: Any, **features: Any) -> Iterator[FakeServer]:
    """A server in a thread."""
    server = FakeServer(tokenizer, **features)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
