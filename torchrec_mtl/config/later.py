"""Keys that older versions did not have: a config of theirs is still the same run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchrec_mtl.config.base import Config

LATER = "added after runs and bench logs were kept"
"""Marks a field whose default is what older versions did: ``Annotated[..., LATER]``."""


def unknown_before(config: Config) -> dict[Any, Any]:
    """Return the marked keys that are at their default, nested as pydantic's ``exclude`` wants them.

    Without them a dump is what an older version wrote, so that hashes of it, such as those of bench logs, stay.
    """
    found: dict[Any, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if LATER in field.metadata and value == field.default:
            found[name] = True
        elif isinstance(value, (Config, tuple)) and (inner := _inner(value)):
            found[name] = inner
    return found


def with_later_keys(old: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return a config as an older version dumped it, with the defaults of the keys that it could not have.

    Args:
        old: read from its YAML; not changed.
        config: the run that it is compared with; where this is not at a default, nothing is added.
    """
    completed: dict[str, Any] = _completed(old, unknown_before(config), config.model_dump(mode="json"))
    return completed


def _inner(value: Config | tuple[Any, ...]) -> dict[Any, Any]:
    if isinstance(value, Config):
        return unknown_before(value)
    parts = {i: unknown_before(item) for i, item in enumerate(value) if isinstance(item, Config)}
    return {i: part for i, part in parts.items() if part}


def _completed(old: Any, unknown: Any, new: Any) -> Any:  # noqa: ANN401
    if isinstance(old, list):
        return [_completed(item, unknown.get(i, {}), new[i] if i < len(new) else None) for i, item in enumerate(old)]
    if not isinstance(old, Mapping) or not unknown:
        return old
    found = dict(old)
    for key, inner in unknown.items():
        if inner is True:
            found.setdefault(key, new[key])
        elif key in found:
            found[key] = _completed(found[key], inner, new[key])
    return found
