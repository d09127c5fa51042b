"""Read YAML files strictly: no tags, no repeated keys, and every scalar as text; JSON files with scalars as text too.

YAML 1.1 would read `mixed_precision: no` as False and `learning_rate: 5e-05` as a text. Here src.config.parsing
converts the text to the type that is needed, so a value means the same in a file and on the command line.
"""

import json
from pathlib import Path
from typing import Any

import yaml

from src.config.errors import UserError, one_line

_BUILT_IN = {"tag:yaml.org,2002:" + kind for kind in ("str", "null", "seq", "map")}


class _Loader(yaml.SafeLoader):
    """A SafeLoader that reads scalars as texts (an empty value, ~ and null as None) and refuses repeated keys."""

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if tag.endswith(":null")]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _BUILT_IN:
            raise yaml.constructor.ConstructorError(None, None, f"tag {node.tag!r} is not allowed", node.start_mark)
        return super().construct_object(node, deep=deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":null"):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; its scalars are texts or None. Raises UserError if the file holds anything else."""
    try:
        content = _parse(path.read_text(encoding="utf-8"), is_json=path.suffix == ".json")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{path.name}:{line} {error.problem or error.context}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path.name}: line {error.lineno}: is not JSON: {error.msg}") from error
    except RecursionError:
        raise UserError(f"{path.name}: lists or mappings are nested too deeply") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path.name}: is not YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path.name}: must consist of `key: value` lines")
    return content


def _parse(text: str, *, is_json: bool) -> Any:
    if is_json:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=str, object_hook=_booleans_as_text)
    return yaml.load(text, Loader=_Loader)


def _booleans_as_text(values: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, bool) else value for name, value in values.items()}
