"""YAML and ``key.path=value`` overrides to a `RunConfig`; all errors at once, each with its path, what was found, and the fix."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from torchrec_mtl.config.base import PluginConfig, did_you_mean
from torchrec_mtl.config.checks import check
from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.features import FeaturesConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.config.training import OptimConfig, TrainConfig
from torchrec_mtl.registry import Kind, resolve

_SECTIONS: dict[str, Any] = {
    "data": DataConfig,
    "features": FeaturesConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "run_dir": str,
}
_PLUGINS: dict[str, tuple[Kind, dict[str, str] | None]] = {
    "bottom": ("bottom", {"type": "concat"}),
    "head": ("head", None),
    "gradient": ("rule", {"type": "sum"}),
}
_DEFAULT_LOSS = {"binary": "bce", "regression": "mse"}


class ConfigError(ValueError):
    """All that is wrong with a config, one line a problem."""

    def __init__(self, problems: Sequence[str], source: str = "config") -> None:
        self.problems = list(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        super().__init__("\n".join([f"{source}: {len(self.problems)} {noun}", *(f"  {p}" for p in self.problems)]))


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, apply overrides, and check everything that can be checked without the data.

    Args:
        path: the YAML file.
        overrides: ``key.path=value``; list items by position (``tasks.0.weight=2``); values are read as YAML.

    Raises:
        ConfigError: with all problems.
    """
    source = Path(path)
    raw = _read(source)
    for override in overrides:
        _apply(raw, override)
    config = parse(raw, source=str(source))
    if config.data.prepare is None:
        return config
    script = str((source.parent / config.data.prepare).resolve())
    return config.model_copy(update={"data": config.data.model_copy(update={"prepare": script})})


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        near = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError([f"no such file.{did_you_mean(str(path), near)}"], source=str(path)) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError([f"cannot be read as YAML: {error}"], source=str(path)) from None
    if not isinstance(raw, dict):
        raise ConfigError([f"expected a mapping of sections, found {type(raw).__name__}"], source=str(path))
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError([f"override '{override}': expected key.path=value, such as train.epochs=2"], source="command line")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"override '{override}': the value is not YAML: {error}"], source="command line") from None
    node: Any = raw
    *parents, last = path.split(".")
    for key in parents:
        node = _step(node, key, override)
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    elif last == "type" and isinstance(node.get("type"), str) and node["type"] != value:
        # Another plug-in has other options: those of the old one must not be carried over.
        node.clear()
        node["type"] = value
    else:
        node[last] = value


def _step(node: Any, key: str, override: str) -> Any:
    child = node[_position(node, key, override)] if isinstance(node, list) else node.setdefault(key, {})
    if child is None and isinstance(node, dict):
        child = node[key] = {}
    if not isinstance(child, (dict, list)):
        raise ConfigError([f"override '{override}': '{key}' is {child!r}, not a section"], source="command line")
    return child


def _position(node: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        found = [item.get("name") for item in node if isinstance(item, dict)]
        raise ConfigError(
            [f"override '{override}': '{key}' is not a position in a list of {len(node)} ({', '.join(map(str, found))})"],
            source="command line",
        )
    return int(key)


def parse(raw: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Validate a mapping section by section, so that one bad section hides no problem of another."""
    problems: list[str] = []
    known = [*_SECTIONS, *_PLUGINS, "tasks"]
    problems += [f"{key}: unknown section '{key}'.{did_you_mean(str(key), known)}" for key in raw if key not in known]
    sections: dict[str, Any] = {}
    for name, model in _SECTIONS.items():
        if name not in raw:
            if name in {"data", "features", "run_dir"}:
                problems.append(f"{name}: missing; every run needs it")
            continue
        value = _validate(model, raw[name], name, problems)
        if value is not None:
            sections[name] = value
    for name, (kind, default) in _PLUGINS.items():
        plugin = _plugin(kind, raw.get(name, default), name, problems)
        if plugin is not None:
            sections[name] = plugin
    tasks = _tasks(raw.get("tasks"), problems)
    if tasks is not None:
        sections["tasks"] = tasks
    problems += check(sections)
    if problems:
        raise ConfigError(problems, source=source)
    return RunConfig.model_construct(**{**_defaults(), **sections})


def _defaults() -> dict[str, Any]:
    return {"optim": OptimConfig(), "train": TrainConfig()}


def _validate(model: Any, value: Any, path: str, problems: list[str]) -> Any:
    try:
        return TypeAdapter(model).validate_python(value)
    except ValidationError as error:
        problems += _messages(error, path)
        return None


def _messages(error: ValidationError, path: str) -> Iterable[str]:
    for item in error.errors(include_url=False):
        where = ".".join([path, *(str(part) for part in item["loc"])])
        found = item["input"]
        shown = "" if item["type"] in {"unknown_key", "missing"} else f" (found {_short(found)})"
        yield f"{where}: {item['msg']}{shown}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _plugin(kind: Kind, value: Any, path: str, problems: list[str]) -> PluginConfig | None:
    if isinstance(value, str):
        value = {"type": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
        problems.append(f"{path}: expected a mapping with a 'type', such as {{type: ...}} (found {_short(value)})")
        return None
    try:
        plugin_class = resolve(kind, value["type"])
    except ValueError as error:
        problems.append(f"{path}: {error}")
        return None
    plugin: PluginConfig | None = _validate(plugin_class.Config, dict(value), path, problems)
    return plugin


def _tasks(value: Any, problems: list[str]) -> tuple[TaskConfig, ...] | None:
    if not isinstance(value, list) or not value:
        problems.append(f"tasks: expected a list of at least one task (found {_short(value)})")
        return None
    tasks = [_task(item, f"tasks.{i}", problems) for i, item in enumerate(value)]
    return tuple(t for t in tasks if t is not None) if all(t is not None for t in tasks) else None


def _task(value: Any, path: str, problems: list[str]) -> TaskConfig | None:
    if not isinstance(value, Mapping):
        problems.append(f"{path}: expected a mapping (found {_short(value)})")
        return None
    loss = _plugin("loss", value.get("loss") or _DEFAULT_LOSS.get(str(value.get("kind")), "bce"), f"{path}.loss", problems)
    # A placeholder lets the task's other keys be checked although its loss is wrong.
    task: TaskConfig | None = _validate(TaskConfig, {**value, "loss": loss or PluginConfig(type="bce")}, path, problems)
    return task


def dump(config: RunConfig) -> str:
    """Return the merged config as YAML that ``load_config`` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)
