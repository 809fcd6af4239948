"""Planted data: users with tastes click, watch long, and watch for a time, in ways a model can learn from the columns.

Every table is drawn from one planted world (the tastes of users and items), so training and test tables fit together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrec_mtl.data.rows import Ints

_WORLD_SEED = 20_240_501
_TASTES = 4
_HISTORY = 12
_Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class _World:
    users: _Array  # [U, tastes]
    items: _Array  # [I, tastes]
    tags: Ints  # [I]


def make_table(
    num_rows: int,
    *,
    seed: int,
    num_users: int = 100,
    num_items: int = 60,
    num_tags: int = 20,
    nulls: bool = False,
) -> pa.Table:
    """Draw impressions.

    Columns: ``user_id``, ``item_id``, ``watched`` (items of the user's taste, oldest first), ``tags`` (strings),
    ``age``, ``hour``, ``duration`` (dense), ``click`` and ``long_view`` (0/1, long views are clicks), ``watch_time``
    (seconds, 0 without a click), ``in_sample`` (0/1: a random half of the rows), ``importance`` (weights).

    Args:
        num_rows: impressions.
        seed: of the impressions; the planted world is always the same.
        num_users: U, rows of the table "user".
        num_items: I, rows of the table "item".
        num_tags: different tags.
        nulls: leave out a tenth of the ids, lists, and dense values.

    Returns:
        The rows.

    Example:
        >>> make_table(4, seed=0).num_rows
        4
    """
    rng = np.random.default_rng([seed, num_rows])
    world = _make_world(num_users, num_items, num_tags)
    user, item = rng.integers(0, num_users, num_rows), rng.integers(0, num_items, num_rows)
    affinity = (world.users[user] * world.items[item]).sum(axis=1)
    age, hour, duration = rng.normal(35, 10, num_rows), rng.integers(0, 24, num_rows), rng.lognormal(3, 1, num_rows)
    click = rng.random(num_rows) < _sigmoid(1.5 * affinity + 0.05 * (age - 35) - 0.3)
    long_view = click & (rng.random(num_rows) < _sigmoid(affinity + 0.5 * (np.log(duration) - 3)))
    seconds = np.where(click, np.exp(1.0 + 0.6 * affinity + 0.5 * long_view + rng.normal(0, 0.3, num_rows)), 0.0)
    columns: dict[str, Any] = {
        "user_id": user,
        "item_id": item,
        "watched": _draw_histories(rng, world, user),
        "tags": [[f"tag{tag}" for tag in tags] for tags in _draw_tags(rng, world, item)],
        "age": age,
        "hour": hour,
        "duration": duration,
    }
    if nulls:
        columns = {name: _leave_out(rng, values) for name, values in columns.items()}
    targets = {
        "click": click.astype(np.int8),
        "long_view": long_view.astype(np.int8),
        "watch_time": seconds,
        "in_sample": rng.integers(0, 2, num_rows),
        "importance": rng.uniform(0.5, 2.0, num_rows),
    }
    return pa.table({**columns, **targets})


def make_config(
    train: str,
    *,
    run_dir: str,
    num_users: int = 100,
    num_items: int = 60,
    space: bool = False,
) -> dict[str, Any]:
    """Return a whole config for these tables, as a YAML would give it; change what a test needs.

    Args:
        train: Parquet files of ``make_table``.
        run_dir: where the run writes.
        num_users: as given to ``make_table``.
        num_items: as given to ``make_table``.
        space: define "long_view" and "watch_time" on clicks only.
    """
    clicked = {"space": "click"} if space else {}
    return {
        "data": {"train": train, "batch_size": 64, "streams": 8, "window": 256},
        "features": {
            "tables": [
                {"name": "user", "rows": num_users, "dim": 8},
                {"name": "item", "rows": num_items, "dim": 8},
                {"name": "tag", "rows": 64, "dim": 8},
            ],
            "sparse": [
                {"name": "user_id", "table": "user", "side": "user"},
                {"name": "item_id", "table": "item", "side": "item"},
                {"name": "tags", "table": "tag", "side": "item", "max_length": 3},
            ],
            "sequences": [{"name": "watched", "table": "item", "max_length": 10, "target": "item_id"}],
            "dense": ["age", "hour", {"name": "duration", "transform": "log1p"}],
        },
        "tasks": [
            {"name": "click", "kind": "binary", "label": "click", "loss": {"type": "bce"}},
            {"name": "long_view", "kind": "binary", "label": "long_view", "loss": {"type": "bce"}, **clicked},
            {"name": "watch_time", "kind": "regression", "label": "watch_time", "loss": {"type": "mse"}, **clicked},
        ],
        "bottom": {"type": "concat"},
        "head": {"type": "shared_bottom"},
        "gradient": {"type": "sum"},
        "run_dir": run_dir,
    }


def _make_world(num_users: int, num_items: int, num_tags: int) -> _World:
    rng = np.random.default_rng([_WORLD_SEED, num_users, num_items])
    users, items = rng.normal(0, 0.8, (num_users, _TASTES)), rng.normal(0, 0.8, (num_items, _TASTES))
    tags = (np.argmax(items, axis=1) * num_tags // _TASTES + rng.integers(0, 3, num_items)) % num_tags
    return _World(users, items, tags)


def _draw_histories(rng: np.random.Generator, world: _World, user: Ints) -> list[Ints]:
    """Draw for each row up to ``_HISTORY`` items, those the user likes more often."""
    chances = np.exp(1.5 * world.users @ world.items.T)
    cumulative = np.cumsum(chances / chances.sum(axis=1, keepdims=True), axis=1)
    lengths = rng.integers(0, _HISTORY + 1, len(user))
    last = len(world.items) - 1
    return [
        np.minimum(np.searchsorted(cumulative[u], rng.random(n)), last) for u, n in zip(user.tolist(), lengths.tolist())
    ]


def _draw_tags(rng: np.random.Generator, world: _World, item: Ints) -> list[list[int]]:
    """Draw for each row the item's tag, and up to three random ones before it."""
    num_tags = int(world.tags.max()) + 1
    noise = [rng.integers(0, num_tags, n).tolist() for n in rng.integers(0, 4, len(item)).tolist()]
    return [[*extra, tag] for extra, tag in zip(noise, world.tags[item].tolist())]


def _leave_out(rng: np.random.Generator, values: Sequence[object] | npt.NDArray[Any]) -> pa.Array:
    return pa.array([None if gone else value for value, gone in zip(values, rng.random(len(values)) < 0.1)])


def _sigmoid(x: _Array) -> _Array:
    return 1 / (1 + np.exp(-x))
