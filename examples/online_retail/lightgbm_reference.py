"""Train LightGBM on the files of `prepare.py`: the figures a neural model has to beat on the test rows.

One model per task, default settings but for 200 trees with rate 0.03 and 15 leaves, no choice made on the test rows.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

FEATURES = (
    "recency_days",
    "frequency",
    "tenure_days",
    "mean_gap_days",
    "gap_ratio",
    "last_amount",
    "mean_amount",
    "max_amount",
    "total_amount",
    "count_30",
    "amount_30",
    "count_90",
    "amount_90",
    "mean_lines",
    "num_items",
    "repeat_share",
    "mean_units",
    "max_units",
    "mean_price",
    "return_rate",
)
BINARY_TASKS = ("buys_again", "buys_twice")
Floats = npt.NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints AUC of the binary tasks, normalised Gini and absolute error of spend, and calibration.

    Once trained on train alone, once on train and validation: the network's rows, then all cuts to 1 September.

    Args:
        argv: Arguments of the command line, those of the process by default.

    Returns:
        0, or 1 where LightGBM or the files are missing.
    """
    parser = argparse.ArgumentParser(description="Train LightGBM on the Online Retail files and print its figures.")
    parser.add_argument(
        "--data", type=Path, default=Path("data/online_retail"), help="what prepare.py wrote [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of LightGBM [%(default)s]")
    args = parser.parse_args(argv)
    if find_spec("lightgbm") is None:
        print("error: LightGBM is not installed; install it with `pip install lightgbm`", file=sys.stderr)
        return 1
    missing = [name for name in ("train", "validation", "test") if not (args.data / f"{name}.parquet").is_file()]
    if missing:
        print(
            f"error: {args.data} has no {missing[0]}.parquet; run examples/online_retail/prepare.py first",
            file=sys.stderr,
        )
        return 1
    print(f"lightgbm {version('lightgbm')}, numpy {version('numpy')}, pandas {version('pandas')}, seed {args.seed}")
    splits = {name: pd.read_parquet(args.data / f"{name}.parquet") for name in ("train", "validation", "test")}
    for sources in (("train",), ("train", "validation")):
        rows = pd.concat([splits[name] for name in sources], ignore_index=True)
        scored = {name: splits[name] for name in ("validation", "test") if name not in sources}
        print(f"trained on {' and '.join(sources)}, {len(rows):,} rows")
        _report(rows, scored, seed=args.seed)
    return 0


def _report(rows: pd.DataFrame, scored: dict[str, pd.DataFrame], *, seed: int) -> None:
    for task in BINARY_TASKS:
        for name, scores in _predict(rows, scored, label=task, objective="binary", seed=seed).items():
            labels = scored[name][task].to_numpy(np.float64)
            calibration = scores.sum() / labels.sum()
            print(f"  {task:10s}  {name:10s}  auc {auc(labels, scores):.4f}  calibration {calibration:.3f}")
    for name, scores in _predict(rows, scored, label="spend", objective="regression", seed=seed).items():
        spend = scored[name]["spend"].to_numpy(np.float64)
        nmae, calibration = np.abs(spend - scores).sum() / spend.sum(), scores.sum() / spend.sum()
        print(
            f"  spend       {name:10s}  gini {gini(spend, scores):.4f}  nmae {nmae:.4f}  calibration {calibration:.3f}"
        )


def auc(labels: Floats, scores: Floats) -> float:
    """The probability that a positive row has a higher score than a negative one, ties counted by half.

    Args:
        labels: 0 or 1.
        scores: Any numbers.

    Returns:
        The area under the ROC curve.
    """
    ranks = pd.Series(scores).rank().to_numpy(np.float64)
    positives = labels.sum()
    return float((ranks[labels > 0].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def gini(values: Floats, scores: Floats) -> float:
    """Gini of the values ordered by score, divided by the Gini of the values in their own order (1 = perfect order).

    Args:
        values: Labels, not negative.
        scores: Any numbers.

    Returns:
        The normalised Gini.
    """
    return _gini_in_order(values[np.argsort(-scores, kind="stable")]) / _gini_in_order(np.sort(values)[::-1])


def _gini_in_order(values: Floats) -> float:
    share = values.cumsum() / values.sum()
    return float(share.sum() - (len(values) + 1) / 2) / len(values)


def _predict(
    rows: pd.DataFrame, scored: dict[str, pd.DataFrame], *, label: str, objective: str, seed: int
) -> dict[str, Floats]:
    import lightgbm  # an optional dependency; main() has checked that it is there

    parameters = {
        "objective": objective,
        "learning_rate": 0.03,
        "num_leaves": 15,
        "seed": seed,
        "deterministic": True,
        "num_threads": 2,
        "verbose": -1,
    }
    data = lightgbm.Dataset(rows[list(FEATURES)], label=rows[label])
    model = lightgbm.train(parameters, data, num_boost_round=200)
    return {name: np.asarray(model.predict(table[list(FEATURES)])) for name, table in scored.items()}


if __name__ == "__main__":
    sys.exit(main())
