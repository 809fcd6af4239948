"""YAML in and out: numbers such as 1e-3 are numbers, a key given twice is an error, messages name the line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

# YAML 1.1 wants a dot and a sign in 1.0e-3; people and YAML 1.2 do not.
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    pass


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def read_yaml(text: str) -> tuple[Any, list[str]]:
    """Read one document of plain values; nothing in the result is shared, so that parts can be changed.

    Args:
        text: YAML.

    Returns:
        The value, and what is wrong with it: keys given twice.

    Raises:
        ValueError: the text is no YAML; the message names the line.

    Example:
        >>> read_yaml("{lr: 1e-3, name: 'no'}")
        ({'lr': 0.001, 'name': 'no'}, [])
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        problems = list(_twice(node, set())) if node is not None else []
        value = loader.construct_document(node) if node is not None else None
        return _unshared(value), problems
    except yaml.YAMLError as error:
        raise ValueError(_reason(error, text)) from None
    except RecursionError:
        raise ValueError("an alias (*name) stands inside what it refers to; remove it") from None


def write_yaml(value: object) -> str:
    """Return block YAML, keys in order, without aliases; ``read_yaml`` gives the same value back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def _twice(node: yaml.Node, seen: set[int]) -> Iterator[str]:
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _twice(item, seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            if key.value in lines:
                yield f"line {line}: key '{key.value}' is given twice, first on line {lines[key.value]}; remove one"
            lines.setdefault(key.value, line)
        yield from _twice(value, seen)


def _unshared(value: object) -> object:
    """Copy mappings and lists, once for each place where an alias puts them."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item) for item in value]
    return value


def _reason(error: yaml.YAMLError, text: str) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"cannot be read as YAML: {' '.join(str(error).split())}"
    number = error.problem_mark.line
    lines = text.splitlines()
    found = f" (found '{lines[number].strip()}')" if number < len(lines) else ""
    if "'\\t'" in str(error.problem):
        return f"line {number + 1}: a tab; indent with blanks{found}"
    problem = str(error.problem).replace("'<stream end>'", "the end").replace("'<block end>'", "the end of the block")
    start = error.context_mark.line if error.context_mark is not None else number
    since = f", in what begins on line {start + 1}" if start != number else ""
    return f"line {number + 1}: not YAML: {problem}{since}{found}"
