"""Read --config: a YAML file with the flags of several scripts, or the run.json of an earlier run."""

from pathlib import Path
from typing import Any

from src.config.errors import UserError
from src.config.hints import hint
from src.config.scripts import ARGUMENTS, flag_names
from src.config.yaml_files import read_mapping

NOT_REUSED = ("output_dir", "overwrite")  # flags in a run.json that belong to its run


def read_config(path: Path, script: str) -> dict[str, tuple[str, Any]]:
    """The flags that a file sets for a script: (the place for messages, what is written there) by name.

    Flags of other scripts are skipped. A section, a mapping under a script's name without `.py`, is for that script
    alone and overrides the rest. Raises UserError for a key that no script knows, wherever it stands.
    """
    content = read_mapping(path)
    if isinstance(content.get("flags"), dict) and "script" in content:  # a run.json
        content = {name: value for name, value in content["flags"].items() if name not in NOT_REUSED}
    return flags_for(content, script, path.name)


def flags_for(content: dict[str, Any], script: str, file: str) -> dict[str, tuple[str, Any]]:
    """The flags that the content of a config file sets for a script, as `read_config` gives them."""
    sections = {each: each.removesuffix(".py") for each in ARGUMENTS}
    common = {name: value for name, value in content.items() if name not in sections.values()}
    everything = dict.fromkeys([*(name for each in ARGUMENTS for name in flag_names(each)), *sections.values()])
    found = _checked(common, list(everything), file)
    for each, section in sections.items():
        keys = content.get(section) or {}
        if not isinstance(keys, dict):
            raise UserError(f"{file}: {section}: must consist of `key: value` lines")
        checked = _checked(keys, flag_names(each), f"{file}: {section}")
        if each == script:
            found |= checked
    return {name: written for name, written in found.items() if name in flag_names(script)}


def _checked(keys: dict[str, Any], known: list[str], place: str) -> dict[str, tuple[str, Any]]:
    for name in keys:
        if name not in known:
            raise UserError(f"{place}: unknown key {name!r}; {hint(name, known, _as_key)}")
    return {name: (f"{place}: {name}", value) for name, value in keys.items()}


def _as_key(flag: str, value: str) -> str:
    return f"{flag}: {value}" if value else flag
