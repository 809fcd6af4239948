"""YAML in and out: numbers such as 1e-3 are numbers, a key given twice is an error, messages name the line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from torchrec_mtl.config.explain import shown

# YAML 1.1 wants a dot and a sign in 1.0e-3; people and YAML 1.2 do not.
_FLOAT = re.compile(r"[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
_MERGE = "tag:yaml.org,2002:merge"
_MOST_VALUES = 1_000_000  # with every alias written out: more is an attack, or no config

_DEEPEST = 50  # what reads the values recurses
_TOO_DEEP = "lists or mappings lie too deep in each other; no setting needs that"


class _Loader(yaml.SafeLoader):
    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # noqa: ANN401
        """Make the value of a node; a scalar that Python refuses (``!!int x``, a 13th month) is named with its line."""
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError):
            kind = str(node.tag).rpartition(":")[2]
            raise ConstructorError(None, None, f"no {kind} can be made of this", node.start_mark) from None
        if isinstance(value, str):
            value = _text(value, node)
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
            raise ConstructorError(None, None, "a whole number of more than 64 bits", node.start_mark)
        return value


def _text(value: str, node: yaml.Node) -> str:
    """Join what JSON escapes as a pair, and refuse what is no text for the system or for Parquet."""
    try:
        joined = value.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError:
        joined = "\0"
    if "\0" in joined:
        raise ConstructorError(None, None, "a text with a NUL, or half of a character", node.start_mark)
    return joined


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
        if node is None:
            return None, []
        if _size(node, {}) > _MOST_VALUES:
            raise ValueError(f"aliases (*name) stand for more than {_MOST_VALUES:,} values; write out what is meant")
        problems = list(_twice(node, set()))
        return _unshared(loader.construct_document(node)), problems
    except yaml.YAMLError as error:
        raise ValueError(_reason(error, text)) from None
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def write_yaml(value: object) -> str:
    """Return block YAML, keys in order, without aliases; ``read_yaml`` gives the same value back."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def read_plain(path: Path) -> object:
    """Return what a YAML file holds that this package wrote; None where it holds something else, or cannot be read."""
    try:
        return read_yaml(path.read_text(encoding="utf-8"))[0]
    except (OSError, ValueError):
        return None


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, each alias counted as what it refers to.

    Raises:
        ValueError: an alias stands inside what it refers to.
    """
    if id(node) not in known:
        known[id(node)] = -1  # while its parts are counted
        parts = node.value if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)) else ()
        inner = (part for pair in parts for part in pair) if isinstance(node, yaml.MappingNode) else parts
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    if known[id(node)] < 0:
        line = node.start_mark.line + 1
        raise ValueError(f"line {line}: an alias (*name) stands inside what it refers to; remove it")
    return known[id(node)]


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


def _unshared(value: object, depth: int = 0) -> object:
    """Copy mappings and lists, once for each place where an alias puts them."""
    if depth > _DEEPEST:
        raise ValueError(_TOO_DEEP)
    if isinstance(value, dict):
        return {key: _unshared(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_unshared(item, depth + 1) for item in value]
    return value


def _reason(error: yaml.YAMLError, text: str) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"cannot be read as YAML: {' '.join(str(error).split())}"
    number = error.problem_mark.line
    lines = text.splitlines()
    found = f" (found {shown(lines[number].strip())})" if number < len(lines) else ""
    if "'\\t'" in str(error.problem):
        return f"line {number + 1}: a tab; indent with blanks{found}"
    problem = str(error.problem).replace("'<stream end>'", "the end").replace("'<block end>'", "the end of the block")
    start = error.context_mark.line if error.context_mark is not None else number
    since = f", in what begins on line {start + 1}" if start != number else ""
    return f"line {number + 1}: not YAML: {problem}{since}{found}"
