"""The content of a plan: sections of named entries, checked for unknown keys, wrong names and wrong values."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.config.config_files import flags_for
from src.config.errors import UserError
from src.config.parsing import nearest
from src.config.scripts import flag_names
from src.studies.grid import file_name
from src.studies.jobs import Value, as_list

SECTIONS = ("data", "models", "teachers", "students", "pseudo_targets", "methods")  # of named entries
KEYS = ("output_dir", "flags", "seeds", "profile", *SECTIONS)
OF_THE_STUDY = ("output_dir", "file_name", "output_file_path")  # flags that no entry may set
Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Entries:
    """What a plan's file holds. file: its name, for messages."""

    file: str
    content: Mapping[str, Any]

    def __post_init__(self) -> None:
        refuse_unknown(self.content, KEYS, self.file)
        for section in SECTIONS:
            if not isinstance(self.content.get(section) or {}, dict):
                raise UserError(f"{self.file}: {section}: must consist of named entries")
            for name, entry in self.section(section).items():
                if not isinstance(entry, dict):
                    raise UserError(f"{self.file}: {section}.{name}: must consist of `flag: value` lines")
                if file_name(name) != name:
                    raise UserError(f"{self.file}: {section}.{name}: a name may have letters, digits, '.', '_' and '-'")

    def section(self, name: str) -> dict[str, Entry]:
        return self.content.get(name) or {}

    def entry(self, section: str, name: str, place: str) -> Entry:
        """Raises UserError, with the nearest name, if the section has no such entry."""
        entries = self.section(section)
        if name not in entries:
            raise UserError(f"{place}: unknown entry of {section}: {name!r}; {closest(name, entries)}")
        return entries[name]

    def flags(self, script: str, entry: Entry, place: str) -> dict[str, Value]:
        """The flags of a command: those of the section `flags`, read as a --config file is, then the entry's."""
        common = self.content.get("flags") or {}
        if not isinstance(common, dict):
            raise UserError(f"{self.file}: flags: must consist of `flag: value` lines")
        refuse_unknown(entry, [name for name in flag_names(script) if name not in OF_THE_STUDY], place)
        found = flags_for(common, script, f"{self.file}: flags")
        return {name: written(value, where) for name, (where, value) in found.items()} | {
            name: written(value, f"{place}: {name}") for name, value in entry.items()
        }


def refuse_unknown(given: Entry, known: Collection[str], place: str) -> None:
    for name in given:
        if name not in known:
            raise UserError(f"{place}: unknown key {name!r}; {closest(name, known)}")


def closest(name: str, known: Collection[str]) -> str:
    """The end of a message about a name that is not known."""
    return f"nearest: {nearest(name, known)!r}" if known else "the plan has none"


def users_file(path: str, place: str, entries: Collection[str]) -> tuple[str, ...]:
    """The file or folder of the user behind a dataset_path; none behind hf:NAME. `entries`: what else it may name."""
    if path.startswith("hf:"):
        return ()
    if not Path(path).exists():
        raise UserError(f"{place}: {path}: there is no such file; as an entry of data: {closest(path, entries)}")
    return (path,)


def texts(value: Any, place: str) -> list[str]:
    """A text, or a list of texts, as a list without repetitions."""
    found = as_list(value)
    if not all(isinstance(each, str) for each in found):
        raise UserError(f"{place}: must be one value or a list of values")
    return list(dict.fromkeys(found))


def written(value: Any, place: str) -> Value:
    """A flag's value as words of a command line."""
    if isinstance(value, dict) or (isinstance(value, list) and not all(isinstance(each, str) for each in value)):
        raise UserError(f"{place}: must be one value or a list of values")
    return "None" if value is None else value
