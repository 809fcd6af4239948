"""A config section by section and entry by entry, so that no mistake hides another.

What is wrong is reported, then mended where that is safe: a misspelt key is taken for the nearest known one, a bad
option is left out. The mended parts only serve to be checked against each other; a config with a problem is never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError

from torchrec_mtl.config.base import Config, PluginConfig, did_you_mean
from torchrec_mtl.config.data import DataConfig
from torchrec_mtl.config.explain import home, messages, shown, suggestion
from torchrec_mtl.config.features import DenseConfig, FeaturesConfig, SequenceConfig, SparseConfig, TableConfig
from torchrec_mtl.config.init_from import InitFromConfig
from torchrec_mtl.config.names import nearest
from torchrec_mtl.config.retrieval import RetrievalConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.config.training import OptimConfig, TrainConfig
from torchrec_mtl.registry import Kind, names, resolve

C = TypeVar("C", bound=Config)
_Mistake = tuple[tuple[int | str, ...], str, str | None]  # where, what kind, what was meant

DEFAULT_LOSS = {"binary": "bce", "regression": "mse"}
_PLUGINS: dict[str, tuple[Kind, str | None]] = {
    "bottom": ("bottom", "concat"),
    "head": ("head", None),
    "gradient": ("rule", "sum"),
}
_FEATURES: dict[str, type[Config]] = {
    "tables": TableConfig,
    "sparse": SparseConfig,
    "sequences": SequenceConfig,
    "dense": DenseConfig,
}


@dataclass
class Draft:
    """What is valid of a config; lists by position, without the entries that cannot be used.

    Attributes:
        losses: the tasks' losses that are valid.
        table_names: every name given to a table, also in entries that are wrong; None where one cannot be read.
        fed_tables: every table that a feature names; None where one cannot be read.
        task_names: as ``table_names``.
        num_tasks: entries of the list of tasks, valid or not.
    """

    data: DataConfig | None = None
    tables: dict[int, TableConfig] = field(default_factory=dict)
    sparse: dict[int, SparseConfig] = field(default_factory=dict)
    sequences: dict[int, SequenceConfig] = field(default_factory=dict)
    dense: dict[int, DenseConfig] = field(default_factory=dict)
    tasks: dict[int, TaskConfig] = field(default_factory=dict)
    losses: dict[int, PluginConfig] = field(default_factory=dict)
    bottom: PluginConfig | None = None
    head: PluginConfig | None = None
    gradient: PluginConfig | None = None
    retrieval: RetrievalConfig | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init_from: InitFromConfig | None = None
    run_dir: str = ""
    table_names: frozenset[str] | None = None
    fed_tables: frozenset[str] | None = None
    task_names: frozenset[str] | None = None
    num_tasks: int = 0

    def config(self) -> RunConfig:
        """Return the whole, once there are no problems."""
        lists = {key: tuple(getattr(self, key).values()) for key in _FEATURES}
        assert self.data is not None
        assert self.bottom is not None
        assert self.head is not None
        assert self.gradient is not None
        return RunConfig(
            data=self.data,
            features=FeaturesConfig(**lists),
            tasks=tuple(self.tasks.values()),
            bottom=self.bottom,
            head=self.head,
            gradient=self.gradient,
            retrieval=self.retrieval,
            optim=self.optim,
            train=self.train,
            init_from=self.init_from,
            run_dir=self.run_dir,
        )


def read_draft(raw: Mapping[Any, Any], problems: list[str]) -> Draft:
    """Read all sections; append what is wrong to ``problems``."""
    raw = _known(raw, list(RunConfig.model_fields), "", "section", problems)
    draft = Draft()
    if raw.get("data") is None:
        problems.append("data: missing; every run needs it, with a 'train'")
    else:
        draft.data = _read(DataConfig, raw["data"], "data", problems)
    _read_features(draft, raw.get("features"), problems)
    _read_tasks(draft, raw.get("tasks"), problems)
    for name, (kind, default) in _PLUGINS.items():
        setattr(draft, name, _plugin(kind, raw.get(name), default, name, problems))
    if raw.get("retrieval") is not None:
        draft.retrieval = _read(RetrievalConfig, raw["retrieval"], "retrieval", problems)
    optim, train = ({} if raw.get(name) is None else raw[name] for name in ("optim", "train"))
    draft.optim = _read(OptimConfig, optim, "optim", problems) or OptimConfig()
    draft.train = _read(TrainConfig, train, "train", problems) or TrainConfig()
    if raw.get("init_from") is not None:
        draft.init_from = _read(InitFromConfig, raw["init_from"], "init_from", problems)
    draft.run_dir = _run_dir(raw.get("run_dir"), problems)
    return draft


def _known(raw: Mapping[Any, Any], known: Iterable[str], path: str, noun: str, problems: list[str]) -> dict[str, Any]:
    """Report unknown keys, and take them for the known ones they resemble."""
    known = list(known)
    found = {str(key): value for key, value in raw.items() if key in known}
    for key in (key for key in raw if key not in known):
        if isinstance(key, str):
            hint = "" if path else home(key)
            problems.append(f"{path}{key}: unknown {noun}.{hint or did_you_mean(key, known)}")
            found.setdefault(nearest(key, known) or "", raw[key])
        else:
            where = path.removesuffix(".") or "config"
            problems.append(f"{where}: the key {shown(key)} is no text; put it in quotes")
    return found


def _read(model: type[C], value: object, path: str, problems: list[str]) -> C | None:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems += messages(error, path)
        try:
            mistakes = [(e["loc"], e["type"], suggestion(e)) for e in error.errors(include_url=False)]
            return model.model_validate(_mended(value, mistakes))
        except ValidationError:
            return None


def _mended(value: Any, mistakes: Iterable[_Mistake]) -> Any:  # noqa: ANN401
    """Return a copy without what is wrong, or with what was most likely meant."""
    if not isinstance(value, Mapping):
        return value
    mended = dict(value)
    for loc, kind, near in mistakes:
        if len(loc) > 1 and isinstance(mended.get(loc[0]), Mapping):
            mended[loc[0]] = _mended(mended[loc[0]], [(loc[1:], kind, near)])
        elif loc:
            _mend_key(mended, loc[0], kind, near if len(loc) == 1 else None)
    return mended


def _mend_key(mapping: dict[Any, Any], key: object, kind: str, near: str | None) -> None:
    bad = mapping.pop(key, None)
    if near is not None and kind == "extra_forbidden":
        mapping.setdefault(near, bad)
    elif near is not None:
        mapping[key] = near


def _read_features(draft: Draft, value: object, problems: list[str]) -> None:
    if value is None:
        problems.append(f"features: missing; every run needs it, with {', '.join(_FEATURES)}")
        return
    if not isinstance(value, Mapping):
        problems.append(f"features: expected a mapping with {', '.join(_FEATURES)} (found {shown(value)})")
        return
    raw = _known(value, _FEATURES, "features.", "key", problems)
    for key, model in _FEATURES.items():
        entries = _entries(raw.get(key), f"features.{key}", problems)
        read = (
            (i, _read(model, _named(entry, key), f"features.{key}.{i}", problems))
            for i, entry in enumerate(entries or ())
        )
        setattr(draft, key, {i: item for i, item in read if item is not None})
        raw[key] = entries
    if all(raw[key] == [] for key in ("sparse", "sequences", "dense")):
        problems.append("features: no features; list some under sparse, sequences, or dense")
    draft.table_names = _words(raw["tables"], draft.tables, "name")
    fed = [_words(raw[key], getattr(draft, key), "table") for key in ("sparse", "sequences")]
    draft.fed_tables = None if fed[0] is None or fed[1] is None else fed[0] | fed[1]


def _named(entry: object, key: str) -> object:
    return {"name": entry} if key == "dense" and isinstance(entry, str) else entry


def _entries(value: object, path: str, problems: list[str]) -> list[Any] | None:
    """Return the list, an empty one for nothing at all, None where it is no list."""
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return list(value)
    example = f"[{value}]" if isinstance(value, (str, int, float)) else "[{name: ...}]"
    problems.append(f"{path}: expected a list, such as {example} (found {shown(value)})")
    return None


def _words(entries: list[Any] | None, read: Mapping[int, Config], key: str) -> frozenset[str] | None:
    """Return the values of ``key`` in all entries, or None where an entry hides its own."""
    if entries is None:
        return None
    values = [getattr(read[i], key) if i in read else _get(entry, key) for i, entry in enumerate(entries)]
    words = frozenset(v for v in values if isinstance(v, str))
    return words if all(isinstance(v, str) for v in values) else None


def _get(entry: object, key: str) -> object:
    return entry.get(key) if isinstance(entry, Mapping) else None


def _read_tasks(draft: Draft, value: object, problems: list[str]) -> None:
    entries = _entries(value, "tasks", problems)
    if entries == []:
        problems.append(
            "tasks: missing; every run needs one task or more, in causal order: - {name: ..., kind: ..., label: ...}"
        )
    for i, entry in enumerate(entries or ()):
        _read_task(draft, i, entry, problems)
    draft.num_tasks = len(entries or ())
    draft.task_names = _words(entries, draft.tasks, "name")


def _read_task(draft: Draft, i: int, entry: object, problems: list[str]) -> None:
    path = f"tasks.{i}"
    loss: PluginConfig | None = None
    given: dict[Any, Any] = dict(entry) if isinstance(entry, Mapping) else {}
    if given.get("loss") is not None:
        loss = _plugin("loss", given["loss"], None, f"{path}.loss", problems)
    # Without a valid loss a placeholder lets the task's other keys be checked.
    value = {**given, "loss": loss or PluginConfig(type="none")} if isinstance(entry, Mapping) else entry
    task = _read(TaskConfig, value, path, problems)
    if task is None:
        return
    if given.get("loss") is None:
        loss = resolve("loss", DEFAULT_LOSS[task.kind]).Config()
        task = task.model_copy(update={"loss": loss})
    draft.tasks[i] = task
    if loss is not None:
        draft.losses[i] = loss


def _plugin(kind: Kind, value: object, default: str | None, path: str, problems: list[str]) -> PluginConfig | None:
    if value is None and default is None:
        problems.append(f"{path}: missing; every run needs it, by name: {', '.join(sorted(names(kind)))}")
        return None
    given = {"type": value or default} if value is None or isinstance(value, str) else value
    if not isinstance(given, Mapping):
        problems.append(
            f"{path}: expected a name, or a mapping such as {{type: {min(names(kind))}}} (found {shown(value)})"
        )
        return None
    if "type" not in given and nearest("type", map(str, given)):
        wrong = nearest("type", map(str, given))
        problems.append(f"{path}.{wrong}: unknown key. Did you mean 'type'?")
        given = {"type" if key == wrong else key: item for key, item in given.items()}
    if not isinstance(given.get("type"), str):
        missing = "missing" if given.get("type") is None else f"expected a name (found {shown(given['type'])})"
        problems.append(
            f"{path}.type: {missing}; give one of {', '.join(sorted(names(kind)))}, or package.module:Class"
        )
        return None
    return _plugin_options(kind, dict(given), path, problems)


def _plugin_options(kind: Kind, given: dict[str, Any], path: str, problems: list[str]) -> PluginConfig | None:
    try:
        plugin_class = resolve(kind, given["type"])
    except ValueError as error:
        problems.append(f"{path}: {error}")
        near = nearest(given["type"], names(kind))
        if near is None or ":" in given["type"]:
            return None
        given["type"] = near
        plugin_class = resolve(kind, near)
    plugin: PluginConfig | None = _read(plugin_class.Config, given, path, problems)
    return plugin


def _run_dir(value: object, problems: list[str]) -> str:
    if value is None:
        problems.append("run_dir: missing; name the folder for everything the run writes, such as runs/first")
    elif not isinstance(value, str) or not value:
        problems.append(f"run_dir: expected the path of a folder (found {shown(value)})")
    return value if isinstance(value, str) else ""
