"""The warnings that a script has given, for the record of its run."""

import logging

_given: list[str] = []


def note(warning: str) -> None:
    """Remember a warning that has been printed."""
    _given.append(warning)


def noted() -> list[str]:
    """The warnings since `begin_noting`, each once, in the order of their first time."""
    return list(dict.fromkeys(_given))


def begin_noting() -> None:
    """Forget earlier warnings, and note from now on also those of the suite's loggers, which stay on stderr."""
    _given.clear()
    logger = logging.getLogger("src")
    if not any(isinstance(handler, _Noting) for handler in logger.handlers):
        logger.addHandler(_Noting(logging.WARNING))


class _Noting(logging.Handler):
    """Notes a message and prints it as Python does for a program without handlers."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())
        if logging.lastResort is not None and not logging.getLogger().handlers:
            logging.lastResort.handle(record)
