"""What libraries say of bad files and models, as one line of the suite's own."""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import TYPE_CHECKING
from zipfile import BadZipFile

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from src.config.errors import UserError

if TYPE_CHECKING:
    pass


READ_ERRORS = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError, ArithmeticError, ImportError,
    SafetensorError, UnpicklingError, StrictDataclassError, BadZipFile, struct.error,
)  # fmt: skip


ABOUT_CODE = re.compile(r"NoneType|has no attribute|not (iterable|subscriptable|callable)|indices must|unsupported")


@contextmanager
def in_one_line(place: str, problem: str) -> Iterator[None]:
    """Turn what a library says of a bad file, often over many lines, into one UserError."""
    try:
        yield
    except READ_ERRORS as error:
        raise UserError(f"{place}: {problem}: {_said(error)[:200]}") from error


def _said(error: BaseException) -> str:
    """Shorten a library's error to one line the user can act on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, EOFError) and not lines:
        return "it ends too early"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError | AttributeError) or not lines or ABOUT_CODE.search(lines[0]):
        return "a value in it is missing, or of another kind than expected"
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return re.sub(r"<class '(\w+)'>", r"\1", re.sub(r"\b[A-Z]\w*Error: ", "", text)).replace("NoneType", "None")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no loading reports of transformers; what matters in them is raised as an error."""
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
