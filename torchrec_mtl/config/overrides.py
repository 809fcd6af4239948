"""``key.path=value`` from the command line, put into the mapping that the YAML gave."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torchrec_mtl.config.names import did_you_mean
from torchrec_mtl.config.text import read_yaml

# Sections whose `type` names a class; each class has options of its own.
_PLUGIN = re.compile(r"bottom|head|gradient|tasks\.[^.]+\.loss")
_DENSE = re.compile(r"features\.dense\.[^.]+")
_RUN = "init_from"


def apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Change ``raw`` in place.

    Later ones win. What replaces a whole section, or the ``type`` of a plug-in, comes before what is set inside it,
    wherever it stands: ``head.tower=[8] head=htlnet`` keeps the tower.

    Args:
        raw: of the YAML.
        overrides: ``key.path=value``; items of lists by position or name (``tasks.click.weight=2``); values are YAML.

    Returns:
        One problem a bad override; the others are applied.

    Example:
        >>> raw = {"head": "htlnet", "train": None}
        >>> apply_overrides(raw, ["head.tower=[8]", "train.epochs=2"])
        []
        >>> raw
        {'head': {'type': 'htlnet', 'tower': [8]}, 'train': {'epochs': 2}}
    """
    problems = []
    for override in sorted(overrides, key=_depth):
        try:
            _apply(raw, override)
        except ValueError as error:
            problems.append(f"override '{override}': {error}")
    return problems


def _depth(override: str) -> tuple[int, bool]:
    path = override.partition("=")[0].split(".")
    return len(path), path[-1] != "type"


def _apply(raw: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise ValueError("expected key.path=value, such as train.epochs=2")
    try:
        value, problems = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"the value is not YAML; put it in quotes ({error})") from None
    if problems:
        raise ValueError(problems[0])
    node: dict[str, Any] | list[Any] = raw
    for i, key in enumerate(keys[:-1]):
        node = _step(node, key, ".".join(keys[: i + 1]))
    _set(node, keys[-1], value, plugin=_PLUGIN.fullmatch(".".join(keys[:-1])) is not None)


def _set(node: dict[str, Any] | list[Any], key: str, value: object, *, plugin: bool) -> None:
    if isinstance(node, list):
        node[_position(node, key)] = value
        return
    if plugin and key == "type" and node.get("type") != value:
        node.clear()  # another plug-in has other options: those of the old one must not be carried over
    node[key] = value


def _step(node: dict[str, Any] | list[Any], key: str, path: str) -> dict[str, Any] | list[Any]:
    """Return the mapping or list under ``key``; what is given by name alone becomes a mapping."""
    child = node[_position(node, key)] if isinstance(node, list) else node.get(key)
    if isinstance(child, str) and _PLUGIN.fullmatch(path):
        child = {"type": child}
    elif isinstance(child, str) and _DENSE.fullmatch(path):
        child = {"name": child}
    elif isinstance(child, str) and path == _RUN:
        child = {"run": child}
    elif child is None:
        child = {}
    if not isinstance(child, (dict, list)):
        raise ValueError(f"{path} is a single value, '{child}'; nothing can be set inside it")
    _set(node, key, child, plugin=False)
    return child


def _position(node: list[Any], key: str) -> int:
    names = [item.get("name") if isinstance(item, dict) else item for item in node]
    if names.count(key) == 1:
        return names.index(key)
    if key.isdigit() and int(key) < len(node):
        return int(key)
    if key.isdigit():
        raise ValueError(f"there is no item {key}; the list has {len(node)}, counted from 0")
    raise ValueError(f"no item is called '{key}'.{did_you_mean(key, [n for n in names if isinstance(n, str)])}")
