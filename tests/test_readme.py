"""The README: its commands parse, its flag tables are those of the arguments, its file map names real files."""

import re
import shlex
from dataclasses import fields

import pytest
from conftest import ARGUMENTS

from src.config.arguments import REPOSITORY, REQUIRED
from src.config.cli import parse

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ *python (\w+_main\.py) (.+)$", README, flags=re.MULTILINE)
FLAG_LINES = re.findall(r"^\| `--(\w+)` \| (\S.*?) \| (.+) \|$", README, flags=re.MULTILINE)


def test_there_are_commands_of_every_stage_of_the_road():
    assert {script for script, _ in COMMANDS} >= {
        "prepare_datasets_main.py", "ft_main.py", "gen_main.py", "kd_main.py"
    }  # fmt: skip


@pytest.mark.parametrize(("script", "flags"), COMMANDS)
def test_every_command_parses(script, flags):
    parse(ARGUMENTS[script], shlex.split(flags))


@pytest.mark.parametrize("script", ARGUMENTS)
def test_every_flag_stands_in_a_table_with_its_default_and_sentence(script):
    documented = {}
    for name, default, sentence in FLAG_LINES:
        documented.setdefault(name, []).append((default.strip("`").strip('"'), sentence))
    for each in fields(ARGUMENTS[script]):
        default = "required" if each.default is REQUIRED else str(each.default)
        sentence = each.metadata["sentence"]
        lines = documented.get(each.name, [])
        assert any(default == written and text.startswith(sentence) for written, text in lines), (each.name, lines)


def test_no_table_names_a_flag_that_is_gone():
    known = {each.name for arguments_class in ARGUMENTS.values() for each in fields(arguments_class)}
    assert {name for name, _, _ in FLAG_LINES} <= known


def test_the_file_map_names_what_is_there():
    map_ = README.split("## File map", 1)[1].split("```")[1]
    named = re.findall(r"\b[\w/]+\.(?:py|sh|md)\b", map_)
    assert len(named) >= 15
    for name in named:
        places = [REPOSITORY, REPOSITORY / "src", REPOSITORY / "benchmarks", REPOSITORY / "tests"]
        assert any((place / name).exists() for place in places), name
