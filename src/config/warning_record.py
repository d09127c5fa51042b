"""The warnings that a script has given, for the record of its run."""

import logging

_given: list[str] = []


def record_warning(warning: str) -> None:
    """Record a warning that has been printed."""
    _given.append(warning)


def recorded_warnings() -> list[str]:
    """The warnings since `begin_recording`, each once, in the order of their first time."""
    return list(dict.fromkeys(_given))


def begin_recording() -> None:
    """Forget earlier warnings, and record from now on also those of the suite's loggers, which stay on stderr."""
    _given.clear()
    logger = logging.getLogger("src")
    if not any(isinstance(handler, _Recorder) for handler in logger.handlers):
        logger.addHandler(_Recorder(logging.WARNING))


class _Recorder(logging.Handler):
    """Records a message and prints it as Python does for a program without handlers."""

    def emit(self, record: logging.LogRecord) -> None:
        record_warning(record.getMessage())
        if logging.lastResort is not None and not logging.getLogger().handlers:
            logging.lastResort.handle(record)
