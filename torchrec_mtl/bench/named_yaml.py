"""A YAML file whose mappings of names become lists of entries; what is wrong is said by the names that stand there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from torchrec_mtl.config.base import Config
from torchrec_mtl.config.explain import ConfigError, shown
from torchrec_mtl.config.text import read_yaml

C = TypeVar("C", bound=Config)


def read_named(path: str | Path, model: type[C], *, what: str, needs: str) -> C:
    """Read a file.

    Args:
        path: of the file.
        model: what it holds.
        what: the same in words, for errors.
        needs: keys that it must have, in words.

    Raises:
        ConfigError: with all problems.
    """
    source = str(path)
    try:
        raw, problems = read_yaml(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}; give {what} as YAML"], source=source) from None
    except ValueError as error:
        raise ConfigError([str(error)], source=source) from None
    if not isinstance(raw, dict):
        raise ConfigError([f"expected a mapping with {needs} (found {shown(raw)})"], source=source)
    try:
        found = model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError([*problems, *_messages(error, raw)], source=source) from None
    if problems:
        raise ConfigError(problems, source=source)
    return found


def _messages(error: ValidationError, raw: Mapping[Any, Any]) -> list[str]:
    """Return a line a problem; entries are called by their names, not by their positions."""
    lines = []
    for item in error.errors(include_url=False):
        node: Any = raw
        path: list[str] = []
        for part in item["loc"]:
            key = list(node)[part] if isinstance(part, int) and isinstance(node, Mapping) else part
            node = node.get(key) if isinstance(node, Mapping) else None
            path.append(str(key).replace("except_", "except"))
        text = item["msg"].replace("except_", "except")
        lines += [f"{'.'.join(path)}: {line}" if path else line for line in text.splitlines()]
    return lines
