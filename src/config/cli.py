"""Parse the command line and --config into a checked dataclass of flags; run a script and return its exit status."""

import argparse
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from src.config.errors import SharedError, UserError, one_line
from src.config.flags.base import GROUPS, REQUIRED, Arguments, spelled
from src.config.parsing import base_type, check_value, convert, is_list
from src.config.signals import sigterm_as_exception
from src.config.warning_record import begin_recording

Parsed = TypeVar("Parsed", bound=Arguments)


def parse(arguments_class: type[Parsed], argv: list[str] | None = None) -> Parsed:
    """The script's arguments: defaults, overridden by --config FILE.yaml, overridden by the command line.

    `argv` is sys.argv[1:] if None. Raises UserError for the first mistake. --help, and a query such as
    --list_experiments, print their answer and exit with status 0.
    """
    begin_recording()
    given = explicit_flags(arguments_class, argv)
    if arguments_class.answer_query(given):
        raise SystemExit(0)
    required = [each for each in fields(arguments_class) if each.default is REQUIRED]
    missing = ", ".join(spelled(each) for each in required if each.name not in given)
    if missing:
        raise UserError(f"{missing}: required, but not given")
    if not arguments_class.takes_several_processes and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{arguments_class.script} runs as one process; start it without a launcher")
    return arguments_class(**given)


def explicit_flags(arguments_class: type[Arguments], argv: list[str] | None = None) -> dict[str, Any]:
    """The values of the flags that the command line or --config sets; flags left at their defaults are absent."""
    by_name = {each.name: each for each in fields(arguments_class)}
    known, unknown = _parser(arguments_class).parse_known_args(argv)
    if unknown:
        _refuse(unknown[0], [*by_name, "config", "help"])
    written = vars(known)
    config = written.pop("config", None)
    given = {name: _value(by_name[name], words, spelled(by_name[name])) for name, words in written.items()}
    if config is None:
        return given
    from src.config.config_files import read_config  # here, because importing PyYAML would slow --help

    in_file = read_config(Path(config), arguments_class.script)
    return {name: _value(by_name[name], written, where) for name, (where, written) in in_file.items()} | given


def run_script(main: Callable[[list[str] | None], object], argv: list[str] | None = None) -> int:
    """Call `main(argv)` and return the exit status: 0, 2 for a UserError or an OSError, 130 for Ctrl-C.

    Those errors become one line on stderr, which one of several processes prints. Any other error is a defect and keeps
    its traceback. SIGTERM raises Stopped, which exits with 143.
    """
    if "RANK" in os.environ:  # torch warns each process of a setting that the suite needs
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        with sigterm_as_exception():
            main(argv)
    except UserError as error:
        first_of_machine = os.environ.get("LOCAL_RANK", "0") == "0"
        if not (error.is_told_here if isinstance(error, SharedError) else first_of_machine):
            return 2
        message = " ".join(str(error).splitlines())
    except OSError as error:  # a name that is too long, a full disk, a missing permission
        message = f"{error.filename}: {error.strerror}" if error.filename else one_line(error)
    except KeyboardInterrupt:
        return 130
    else:
        return 0
    print(f"{Path(main.__code__.co_filename).name}: error: {message}", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _parser(arguments_class: type[Arguments]) -> _Parser:
    required = " ".join(f"{spelled(each)} ..." for each in fields(arguments_class) if each.default is REQUIRED)
    parser = _Parser(
        prog=arguments_class.script,
        usage=f"python {arguments_class.script} {required} [--flag value ...]",
        description=(arguments_class.__doc__ or "").replace("\n    ", "\n"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        help="Read flags from this file too; the command line wins. FILE may hold flags of other scripts, sections "
        "named after a script, or be the run.json of an earlier run.",
    )
    for title in GROUPS:
        group = parser.add_argument_group(title)
        for each in fields(arguments_class):
            if each.metadata["group"] == title:
                is_bool = base_type(each.type)[0] is bool
                nargs = "*" if is_list(each.type) else "?" if is_bool else None
                const = "True" if is_bool else None  # of a flag without a value
                name = each.name if each.metadata["positional"] else spelled(each)
                group.add_argument(name, nargs=nargs, const=const, metavar=_metavar(each), help=_help(each))
    return parser


def _metavar(each: Field[Any]) -> str:
    if each.metadata["positional"]:
        return spelled(each)
    kind = base_type(each.type)[0]
    names = {bool: "True|False", int: "INTEGER", float: "NUMBER", str: "TEXT"}
    return names[kind.__args__[0] if is_list(each.type) else kind]


def _help(each: Field[Any]) -> str:
    choices = each.metadata["limits"]["choices"]
    possible = f" One of: {', '.join(choice or '(empty)' for choice in choices)}." if choices else ""
    default = repr(each.default) if isinstance(each.default, str) else each.default
    default = " ".join(map(str, default)) if isinstance(default, tuple) else default
    note = "(required)" if each.default is REQUIRED else f"[{default}]"
    return f"{each.metadata['sentence']}{possible} {note}".replace("%", "%%")


def _refuse(word: str, names: Collection[str]) -> NoReturn:
    """Raise a UserError for a word of the command line that is neither a flag nor a flag's value."""
    if not word.startswith("-"):
        raise UserError(f"unexpected {word!r}: it follows a flag that takes one value (quote a text that has spaces)")
    from src.config.hints import hint  # here, because it knows the flags of all scripts

    name = word.partition("=")[0]
    meant = hint(name.lstrip("-"), names, lambda flag, value: f"--{flag} {value}".rstrip())
    raise UserError(f"unknown flag {name!r}; {meant}")


def _value(each: Field[Any], written: Any, where: str) -> Any:
    if each.metadata["positional"] and isinstance(written, list):  # a word may have spaces
        value = tuple(convert(word, base_type(each.type)[0].__args__[0], where) for word in written)
    else:
        word = each.metadata["none"]
        value = convert(None if written in (word, [word]) else written, each.type, where)
    check_value(value, each.metadata["limits"], where)
    return value
