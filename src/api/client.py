"""Requests to a server with an OpenAI-compatible API: several at a time, repeated after failures, ended at once.

The key comes from an environment variable. It is sent to the server and shown nowhere.
"""

import os
import random
import socket
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from threading import Event, Lock, local
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from src.config.console import say
from src.config.errors import UserError, one_line

KEY = "KD_SERVER_KEY"  # the environment variable that holds the key
GIVE_UP_AFTER = 600.0  # seconds of failures of one request
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before a request is repeated: doubled each time
CONNECT_TIMEOUT, ANSWER_TIMEOUT = 10.0, 3600.0  # seconds; a request may write many long targets
BUSY = (408, 409, 425, 429)  # statuses below 500 that may pass
MOST_CHARACTERS = 300  # of a server's message
SAME = 20  # characters in which two messages are equal that are shown once
ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 3}  # seconds, seconds, times: notice a dead machine

T = TypeVar("T")


class TroubleError(Exception):
    """An answer that may be better next time; `wait`: how many seconds the server asks to wait."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class RefusedError(UserError):
    """The server refuses a request, and would refuse it again."""


class ServerClient:
    """Sends requests to a server from `concurrency` threads, each with a connection of its own.

    `close` ends all requests, so that the server need not go on with them.
    """

    def __init__(self, url: str, concurrency: int = 1) -> None:
        self.url = url.rstrip("/")
        self._address = urlsplit(self.url)
        self._key = os.environ.get(KEY, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise UserError(f"{KEY}: the key in this environment variable has characters that no key has")
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="server")
        self._own = local()
        self._open: set[HTTPConnection] = set()
        self._lock, self._closed = Lock(), Event()
        self._said: set[str] = set()

    def submit(self, work: Callable[..., T], *arguments: Any) -> "Future[T]":
        """Do some work with requests in one of the threads."""
        return self._threads.submit(work, *arguments)

    def close(self) -> None:
        """End all requests, also those that wait to be repeated."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for connection in self._open:
                with suppress(OSError, AttributeError):  # it has ended already
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def request(self, path: str, body: Any, read: Callable[[bytes], T], *, give_up_after: float | None = None) -> T:
        """read(the answer) of POST, or of GET if `body` is None.

        Busy servers, failed connections and answers for which `read` raises TroubleError are tried again, after growing
        pauses, for GIVE_UP_AFTER seconds or those given. Then, and at once if the server refuses the request, raises
        UserError.
        """
        data = None if body is None else msgspec.json.encode(body)
        give_up_after = GIVE_UP_AFTER if give_up_after is None else give_up_after
        first, pause = None, FIRST_WAIT
        while True:
            try:
                return read(self._answer(path, data))
            except (TroubleError, OSError, HTTPException) as error:
                if self._closed.is_set():
                    raise CancelledError from None
                trouble, now = self._shown(one_line(error)), time.monotonic()
                wait = max(pause * random.uniform(0.5, 1), error.wait if isinstance(error, TroubleError) else 0)
            first = now if first is None else first
            if now - first + wait > give_up_after:
                for_long = f" for {give_up_after / 60:g} minutes" if give_up_after else ""
                raise UserError(f"{self.url}: no answer{for_long}: {trouble}")
            self._say_once(trouble, give_up_after)
            if self._closed.wait(wait):
                raise CancelledError
            pause = min(2 * pause, LONGEST_WAIT)

    def _answer(self, path: str, data: bytes | None) -> bytes:
        """The body of an answer with status 200; raises RefusedError or TroubleError for other statuses."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        while True:
            connection, is_used = self._connection()
            try:
                connection.request("GET" if data is None else "POST", self._address.path + path, data, headers)
                response = connection.getresponse()
                body = response.read()
            except (OSError, HTTPException) as error:
                self._drop(connection)
                if is_used and isinstance(error, ConnectionError):
                    continue  # the server had closed a connection that rested: a new one tells how it is
                raise
            self._own.is_used = True
            if connection.sock is None:  # the server closes it after each answer
                self._drop(connection)
            if response.status == 200:
                return body
            message = f"status {response.status}: {self._shown(_message(body, response.reason))}"
            if response.status in BUSY or response.status >= 500:
                raise TroubleError(message, _seconds(response.getheader("Retry-After")))
            hint = f" (the key is read from {KEY})" if response.status in (401, 403) else ""
            raise RefusedError(f"{self.url}{path}: {message}{hint}")

    def _connection(self) -> tuple[HTTPConnection, bool]:
        """This thread's connection, and whether it has brought an answer already."""
        found = getattr(self._own, "connection", None)
        if found is not None:
            return found, self._own.is_used
        kind = HTTPSConnection if self._address.scheme == "https" else HTTPConnection
        connection = kind(self._address.hostname or "", self._address.port, timeout=CONNECT_TIMEOUT)
        connection.connect()
        connection.sock.settimeout(ANSWER_TIMEOUT)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in ALIVE.items():
            if hasattr(socket, name):  # not on every system
                connection.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        with self._lock:
            self._open.add(connection)
        if self._closed.is_set():
            self._drop(connection)
            raise CancelledError
        self._own.connection, self._own.is_used = connection, False
        return connection, False

    def _drop(self, connection: HTTPConnection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()
        self._own.connection = None

    def _say_once(self, trouble: str, give_up_after: float) -> None:
        with self._lock:
            is_new = trouble[:SAME] not in self._said
            self._said.add(trouble[:SAME])
        if is_new:
            say(f"{self.url}: {trouble}; requests are repeated for up to {give_up_after / 60:g} minutes")

    def _shown(self, message: str) -> str:
        """A message on one line, shortened and without the key."""
        line = " ".join(message.split())
        line = line.replace(self._key, "***") if self._key else line
        return line if len(line) <= MOST_CHARACTERS else line[: MOST_CHARACTERS - 1] + "…"


def _message(body: bytes, reason: str) -> str:
    """What an answer says about its failure: the message in its JSON, or its text."""
    try:
        found = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[: 4 * MOST_CHARACTERS].decode(errors="replace") or reason
    while isinstance(found, dict) and found:
        found = next((found[name] for name in ("error", "message", "detail") if found.get(name)), str(found))
    return str(found) if found else reason


def _seconds(retry_after: str | None) -> float:
    """The header Retry-After, seconds or a date, as seconds from now; 0 without a readable one."""
    if retry_after is None:
        return 0.0
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0
