"""Turn the errors of libraries into one line, and keep the libraries quiet."""

import json
import re
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from src.config.errors import UserError, one_line
from src.storage.json_files import check_characters

MOST_CHARACTERS = 200  # of a library's message
READ_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError, ArithmeticError, ImportError,
    SafetensorError, UnpicklingError, StrictDataclassError, BadZipFile, struct.error,
)  # fmt: skip
INTERNAL_ERRORS = (LookupError, AttributeError, TypeError)  # whose messages are about the library's code, not the file


@contextmanager
def in_one_line(place: str, problem: str) -> Iterator[None]:
    """Within: an error of a library becomes a UserError of one line, "place: problem: the library's message"."""
    try:
        yield
    except READ_ERRORS as error:
        raise UserError(f"{place}: {problem}: {_message(error)[:MOST_CHARACTERS]}") from error


class TokenizersErrors(AbstractContextManager):
    """Within: an error of the library `tokenizers`, which has no class of its own, becomes a ValueError."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object) -> None:
        if kind is Exception:
            raise ValueError(str(error)) from error


def _message(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "the file ends too early"
    if isinstance(error, INTERNAL_ERRORS):
        return "a value is missing or of the wrong type"
    return re.sub(r"<class '(\w+)'>", r"\1", one_line(error)).replace("NoneType", "None")


def read_json_object(place: str, source: str, file: str) -> dict:
    """The object in a JSON file of a local model folder; empty if the file is missing or `source` is a hub name.

    Unlike dataset files it may contain Infinity, which some configs do. Raises UserError, which begins with `place`.
    """
    path = Path(source) / file
    if not path.is_file():
        return {}
    part = "tokenizer" if file.startswith("tokenizer") else file
    with in_one_line(place, f"{part} cannot be read"):
        data = path.read_bytes()
        content = json.loads(data.decode("utf-8"))
        check_characters(content, data)
    if not isinstance(content, dict):
        kind = type(content).__name__.removesuffix("Type")
        raise UserError(f"{place}: {part} cannot be read: {file} must hold an object, not a {kind}")
    return content


@contextmanager
def quiet() -> Iterator[None]:
    """Within: no progress bars and no loading reports of transformers; what matters in them is raised as an error."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
