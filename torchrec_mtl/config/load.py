"""YAML and ``key.path=value`` overrides to a `RunConfig`; all errors at once, each with path, finding, and fix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchrec_mtl.config.checks import check
from torchrec_mtl.config.draft import read_draft
from torchrec_mtl.config.explain import ConfigError, shown
from torchrec_mtl.config.names import did_you_mean
from torchrec_mtl.config.overrides import apply_overrides
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.config.text import read_yaml, write_yaml

__all__ = ["ConfigError", "dump", "load_config", "parse"]

_SECTIONS = ", ".join(f"{name}:" for name in RunConfig.model_fields)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply overrides, and check everything that can be checked without the data.

    Args:
        path: the YAML file.
        overrides: ``key.path=value``; items of lists by position or name (``tasks.click.weight=2``); values are YAML.

    Returns:
        The config; a relative ``data.prepare`` is made absolute, beside the file.

    Raises:
        ConfigError: with all problems.
    """
    file = Path(path)
    raw, problems = _read(file)
    problems += apply_overrides(raw, overrides)
    source = f"{file} with {' '.join(overrides)}" if overrides else str(file)
    config = parse(raw, source=source, problems=problems)
    if config.data.prepare is None:
        return config
    script = str((file.parent / config.data.prepare).resolve())
    return config.model_copy(update={"data": config.data.model_copy(update={"prepare": script})})


def parse(raw: Mapping[Any, Any], source: str = "config", problems: Sequence[str] = ()) -> RunConfig:
    """Check a mapping, as YAML gives it, and make a config of it.

    Args:
        raw: of the sections.
        source: where they come from, for the error.
        problems: found before.

    Raises:
        ConfigError: with all problems.
    """
    found = list(problems)
    draft = read_draft(raw, found)
    found += check(draft)
    if found:
        raise ConfigError(list(dict.fromkeys(found)), source=source)
    return draft.config()


def dump(config: RunConfig, *, without: Mapping[str, Any] | None = None) -> str:
    """Return the whole config, defaults included, as YAML that ``load_config`` reads; without sections left out.

    Args:
        config: the run.
        without: keys to leave out, nested as pydantic's ``exclude``.
    """
    left_out: dict[str, Any] = dict(without or {})
    if config.retrieval is None:
        left_out["retrieval"] = True
    elif config.retrieval.negatives is None:
        left_out["retrieval"] = {"negatives"}
    if config.init_from is None:
        left_out["init_from"] = True
    return write_yaml(config.model_dump(mode="json", exclude=left_out))


def _read(path: Path) -> tuple[dict[Any, Any], list[str]]:
    try:
        raw, problems = read_yaml(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        near = [str(p) for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise ConfigError([f"no such file.{did_you_mean(str(path), near)}"], source=str(path)) from None
    except UnicodeDecodeError:
        raise ConfigError(["is no text in UTF-8; a config is a YAML file"], source=str(path)) from None
    except OSError as error:
        raise ConfigError([f"cannot be read: {error.strerror}; give a YAML file"], source=str(path)) from None
    except ValueError as error:
        raise ConfigError([str(error)], source=str(path)) from None
    if raw is None:
        raise ConfigError([f"the file is empty; a run is a mapping of {_SECTIONS}"], source=str(path))
    if not isinstance(raw, dict):
        raise ConfigError([f"expected a mapping of {_SECTIONS} (found {shown(raw)})"], source=str(path))
    return raw, problems
