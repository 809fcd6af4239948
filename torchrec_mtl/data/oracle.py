"""Generated rows with a known oracle: each row carries the true probability of its two labels.

The logit of a task is ``bias + scale x signal``; a signal has mean 0 and variance 1 over all rows, and is the sum of a
weight an id, a weight a dense column, and products of the weights of two fields' ids. No model can rank rows better
than the true probabilities do (`oracle_auc`), so that the distance to them is what a model still has to learn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from torchrec_mtl.data.rows import Ints
from torchrec_mtl.training.metrics import auc

# Shapes: N rows, F fields, D dense columns, R ids of a field.

Relation = Literal["funnel", "independent", "conflicting"]
TASKS = ("click", "buy")

_WORLD_SEED = 20_240_502
_SKEW = 3.0  # ids are R u^3 for uniform u: popularity falls as a power law with exponent 2/3
_SCALE, _BIAS = 1.7, -0.5
_SHARES = {"ids": 0.6, "dense": 0.2, "pairs": 0.2}  # of a signal's variance
_MOST_PAIRS = 3
_Array = npt.NDArray[np.float32]
_Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Inputs:
    ids: list[Ints]  # F times [N]
    dense: _Array  # [N, D]


def make_oracle_table(
    num_rows: int,
    *,
    seed: int,
    rows_per_field: int | Sequence[int] = 50,
    num_fields: int = 20,
    num_dense: int = 5,
    relation: Relation = "independent",
) -> pa.Table:
    """Draw rows, their true probabilities, and labels from these.

    Columns: ``f0`` .. (ids, few of them popular), ``d0`` .. (float32, standard normal), ``click`` and ``buy`` (0/1),
    ``p_click`` and ``p_buy`` (the truth, P(label = 1 | ids, dense): for judging, never an input).

    Relations:
        independent: each task has a signal of its own.
        funnel: as independent, and a buy needs a click: P(buy) = P(click) P(buy | click).
        conflicting: two signals that change sides. Where the last field's id is among the popular ones (half of the
            rows), a click follows the second signal and a buy the first; elsewhere it is the other way round. So both
            tasks need both signals, and never the same one for one row.

    Args:
        num_rows: N.
        seed: of the rows; the planted world depends on ``rows_per_field`` and the columns alone.
        rows_per_field: R, one for all fields or one each.
        num_fields: F.
        num_dense: D.
        relation: of the two tasks, see above.

    Raises:
        ValueError: there is no field, or not a number of rows for each.

    Example:
        >>> make_oracle_table(4, seed=0, num_fields=2, num_dense=1).column_names
        ['f0', 'f1', 'd0', 'click', 'buy', 'p_click', 'p_buy']
    """
    sizes = _sizes(rows_per_field, num_fields)
    rng = np.random.default_rng([seed, num_rows])
    ids = [(size * rng.random(num_rows) ** _SKEW).astype(np.int64) for size in sizes]
    inputs = _Inputs(ids, rng.standard_normal((num_rows, num_dense), dtype=np.float32))
    p_click, p_buy = _probabilities(inputs, sizes, relation)
    click, draw = rng.random(num_rows) < p_click, rng.random(num_rows)
    buy = draw < p_buy
    if relation == "funnel":
        buy, p_buy = click & buy, p_click * p_buy
    return pa.table(
        {
            **{f"f{field}": values for field, values in enumerate(inputs.ids)},
            **{f"d{column}": inputs.dense[:, column] for column in range(num_dense)},
            "click": click.astype(np.int8),
            "buy": buy.astype(np.int8),
            "p_click": p_click,
            "p_buy": p_buy,
        }
    )


def oracle_auc(table: pa.Table, task: str) -> float:
    """Return the AUC of a task's true probabilities: no model has a higher one but by chance.

    Args:
        table: of `make_oracle_table`.
        task: "click" or "buy".
    """
    return auc(table.column(task).to_numpy(), table.column(f"p_{task}").to_numpy())


def make_oracle_config(
    train: str,
    *,
    run_dir: str,
    rows_per_field: int | Sequence[int] = 50,
    num_fields: int = 20,
    num_dense: int = 5,
    dim: int = 8,
    batch_size: int = 1024,
) -> dict[str, Any]:
    """Return a whole config for these tables, as a YAML would give it; replace its head.

    Args:
        train: Parquet files of ``make_oracle_table``.
        run_dir: where the run writes.
        rows_per_field: as given to ``make_oracle_table``.
        num_fields: as given to ``make_oracle_table``.
        num_dense: as given to ``make_oracle_table``.
        dim: width of the embeddings.
        batch_size: rows of a batch.
    """
    sizes = _sizes(rows_per_field, num_fields)
    return {
        "data": {"train": train, "batch_size": batch_size, "outcomes": [f"p_{task}" for task in TASKS]},
        "features": {
            "tables": [{"name": f"f{field}", "rows": size, "dim": dim} for field, size in enumerate(sizes)],
            "sparse": [{"name": f"f{field}", "table": f"f{field}"} for field in range(num_fields)],
            "dense": [f"d{column}" for column in range(num_dense)],
        },
        "tasks": [{"name": task, "kind": "binary", "label": task, "loss": {"type": "bce"}} for task in TASKS],
        "bottom": {"type": "concat"},
        "head": {"type": "shared_bottom"},
        "gradient": {"type": "sum"},
        "run_dir": run_dir,
    }


def _sizes(rows_per_field: int | Sequence[int], num_fields: int) -> list[int]:
    sizes = [rows_per_field] * num_fields if isinstance(rows_per_field, int) else list(rows_per_field)
    if num_fields < 1 or len(sizes) != num_fields or min(sizes) < 2:
        raise ValueError(
            f"rows_per_field must be a number of at least 2, or one for each of num_fields (at least 1) fields; found "
            f"rows_per_field={rows_per_field}, num_fields={num_fields}"
        )
    return sizes


def _probabilities(inputs: _Inputs, sizes: Sequence[int], relation: Relation) -> tuple[_Probabilities, _Probabilities]:
    """Return P(click) and P(buy), or for a funnel P(buy | click), each [N]."""
    signals = _signals(inputs, sizes)
    if relation == "conflicting":
        signals = np.where(inputs.ids[-1] < sizes[-1] * 0.5**_SKEW, signals[::-1], signals)
    click, buy = 1 / (1 + np.exp(-(_BIAS + _SCALE * signals.astype(np.float64))))
    return click, buy


def _signals(inputs: _Inputs, sizes: Sequence[int]) -> _Array:
    """Return the two signals [2, N]."""
    num_rows, num_dense = inputs.dense.shape
    pairs = min(_MOST_PAIRS, len(sizes) // 2)
    present = {"ids": True, "dense": num_dense > 0, "pairs": pairs > 0}
    total = sum(share for part, share in _SHARES.items() if present[part])
    scale = {part: math.sqrt(share / total) for part, share in _SHARES.items()}
    signals = np.zeros((2, num_rows), np.float32)
    factors = np.ones((2, num_rows), np.float32)
    for field, (size, ids) in enumerate(zip(sizes, inputs.ids, strict=True)):
        weights = _weights(field, size)[:, ids]
        signals += np.float32(scale["ids"] / math.sqrt(len(sizes))) * weights
        if field < 2 * pairs:
            factors *= weights
        if field % 2 and field < 2 * pairs:
            signals += np.float32(scale["pairs"] / math.sqrt(pairs)) * factors
            factors[:] = 1
    if num_dense:
        signals += np.float32(scale["dense"]) * (_dense_weights(num_dense) @ inputs.dense.T)
    return signals


def _dense_weights(num_dense: int) -> _Array:
    """Return each dense column's weights, [2, D], so that their sum over columns has variance 1."""
    weights = np.random.default_rng([_WORLD_SEED, num_dense]).standard_normal((2, num_dense), dtype=np.float32)
    return np.asarray(weights / np.linalg.norm(weights, axis=1, keepdims=True), np.float32)


def _weights(field: int, size: int) -> _Array:
    """Return each id's weights, [2, R]: mean 0 and variance 1 over rows, as far as these are popular."""
    values = np.random.default_rng([_WORLD_SEED, field, size]).standard_normal((2, size), dtype=np.float32)
    popularity = np.diff((np.arange(size + 1) / size) ** (1 / _SKEW)).astype(np.float32)
    values -= (values @ popularity)[:, None]
    return np.asarray(values / np.sqrt(values**2 @ popularity)[:, None], np.float32)
