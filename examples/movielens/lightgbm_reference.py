"""Train LightGBM on the files of `prepare.py`: the figures a neural model has to beat on the test rows.

One model per task, default settings but for 200 trees with rate 0.03 and 15 leaves, no choice made on the test rows.
Of the histories it sees the counts and means that they come with, and not the movies.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

FEATURES = (
    "user_ratings",
    "user_mean",
    "movie_ratings",
    "movie_mean",
    "age",
    "gender",
    "occupation",
    "zip_region",
    "release_year",
    "hour",
    "day_of_week",
)
CATEGORIES = ["gender", "occupation", "zip_region"]
NUM_GENRES = 18
TASKS = ("like", "love", "dislike")
SPLITS = ("train", "validation", "test")
Floats = npt.NDArray[np.float64]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints AUC of the three tasks, for validation and test.

    Args:
        argv: Arguments of the command line, those of the process by default.

    Returns:
        0, or 1 where LightGBM or the files are missing.
    """
    parser = argparse.ArgumentParser(description="Train LightGBM on the MovieLens files and print its figures.")
    parser.add_argument("--data", type=Path, default=Path("data/movielens"), help="what prepare.py wrote [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="seed of LightGBM [%(default)s]")
    parser.add_argument("--out", type=Path, help="write the figures of the test rows here too, as JSON")
    args = parser.parse_args(argv)
    if find_spec("lightgbm") is None:
        print("error: LightGBM is not installed; install it with `pip install lightgbm`", file=sys.stderr)
        return 1
    missing = [name for name in SPLITS if not (args.data / f"{name}.parquet").is_file()]
    if missing:
        print(
            f"error: {args.data} has no {missing[0]}.parquet; run examples/movielens/prepare.py first", file=sys.stderr
        )
        return 1
    print(f"lightgbm {version('lightgbm')}, numpy {version('numpy')}, pandas {version('pandas')}, seed {args.seed}")
    splits = {name: pd.read_parquet(args.data / f"{name}.parquet") for name in SPLITS}
    inputs = {name: design(rows) for name, rows in splits.items()}
    found = {}
    for task in TASKS:
        labels = {name: rows[task].to_numpy(np.float64) for name, rows in splits.items()}
        for name, scores in _predict(inputs, labels["train"], seed=args.seed).items():
            print(f"{task:10s}  {name:10s}  auc {(value := auc(labels[name], scores)):.4f}")
            if name == "test":
                found[task] = {"metric": "auc", "untuned": [round(value, 6)]}
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def design(rows: pd.DataFrame) -> pd.DataFrame:
    """What LightGBM sees.

    Args:
        rows: Rows of a file of prepare.py.

    Returns:
        The features, and one column a genre: 1 where the movie is of it.
    """
    genres = np.zeros((len(rows), NUM_GENRES + 1), np.int64)
    lengths = rows["genres"].map(len).to_numpy(np.int64)
    genres[np.repeat(np.arange(len(rows)), lengths), np.concatenate(rows["genres"].to_list()).astype(np.int64)] = 1
    flags = {f"genre_{genre}": genres[:, genre] for genre in range(1, NUM_GENRES + 1)}
    return rows[list(FEATURES)].assign(**flags)


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


def _predict(inputs: dict[str, pd.DataFrame], labels: Floats, *, seed: int) -> dict[str, Floats]:
    import lightgbm  # an optional dependency; main() has checked that it is there

    parameters = {
        "objective": "binary",
        "learning_rate": 0.03,
        "num_leaves": 15,
        "seed": seed,
        "deterministic": True,
        "num_threads": 2,
        "verbose": -1,
    }
    data = lightgbm.Dataset(inputs["train"], label=labels, categorical_feature=CATEGORIES)
    model = lightgbm.train(parameters, data, num_boost_round=200)
    return {name: np.asarray(model.predict(inputs[name])) for name in ("validation", "test")}


if __name__ == "__main__":
    sys.exit(main())
