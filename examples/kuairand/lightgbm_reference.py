"""Train LightGBM on the files of `prepare.py`: the figures a neural model has to beat on the test rows.

One model per task. It sees the fields of the user and the video, the counts and rates of the histories, how long the
user's histories are, and how often the video is in them. With and without the ids, with small and large trees, stopped
early on the validation rows: the settings best there are trained once a seed, and only these models see the test rows.
Beside them, LightGBM as it comes: its default settings and 200 trees, without the ids, the same for every seed.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

FEATURES = (
    "tab",
    "hour",
    "duration_bucket",
    "log_duration",
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    *(f"onehot_feat{index}" for index in range(18)),
    "log_follow_user_num",
    "log_fans_user_num",
    "log_friend_user_num",
    "log_register_days",
    "log_user_history",
    "log_user_liked",
    "user_long_watch_rate",
    "music_type",
    "video_type",
    "upload_type",
    "log_video_popularity",
    "video_long_watch_rate",
    "video_like_rate",
    "log_author_popularity",
    "author_long_watch_rate",
)
HISTORIES = ("watched", "liked", "long_watched")
IDS = ("user", "video", "author", "music")
USES_OF_IDS = ("left out", "numbers", "categories")
NUM_LEAVES = (31, 63)
PARAMETERS: Mapping[str, Any] = {
    "learning_rate": 0.05,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "min_data_in_leaf": 100,
    "cat_smooth": 50,
    "cat_l2": 50,
    "min_data_per_group": 200,
    "deterministic": True,
    "num_threads": 1,
    "verbose": -1,
}
ROUNDS, PATIENCE = 2000, 100
UNTUNED: Mapping[str, Any] = {"deterministic": True, "num_threads": 1, "verbose": -1}
UNTUNED_ROUNDS = 200
SPLITS = ("train", "validation", "test")
LABELS = {"click": "is_click", "long_view": "long_view", "like": "is_like", "play_seconds": "play_time_s"}
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What the validation rows choose.

    Attributes:
        ids: One of USES_OF_IDS.
        leaves: Most leaves of a tree.
    """

    ids: str
    leaves: int


def main(argv: Sequence[str] | None = None) -> int:
    """Prints AUC of click, long view, and like, and normalised Gini of play seconds, for validation and test.

    Args:
        argv: Arguments of the command line, those of the process by default.

    Returns:
        0, or 1 where LightGBM or the files are missing.
    """
    parser = argparse.ArgumentParser(description="Train LightGBM on the KuaiRand files and print its figures.")
    parser.add_argument("--data", type=Path, default=Path("data/kuairand"), help="what prepare.py wrote [%(default)s]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="the first one chooses")
    parser.add_argument("--tasks", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--out", type=Path, help="write the figures here too, as JSON")
    args = parser.parse_args(argv)
    if find_spec("lightgbm") is None:
        print("error: LightGBM is not installed; install it with `pip install lightgbm`", file=sys.stderr)
        return 1
    missing = [name for name in SPLITS if not (args.data / f"{name}.parquet").is_file()]
    if missing:
        print(
            f"error: {args.data} has no {missing[0]}.parquet; run examples/kuairand/prepare.py first", file=sys.stderr
        )
        return 1
    print(f"lightgbm {version('lightgbm')}, numpy {version('numpy')}, pandas {version('pandas')}, seeds {args.seeds}")
    splits = {name: pd.read_parquet(args.data / f"{name}.parquet") for name in SPLITS}
    inputs = {name: design(rows) for name, rows in splits.items()}
    found = {}
    for task in args.tasks:
        labels = {name: rows[LABELS[task]].to_numpy(np.float64) for name, rows in splits.items()}
        found[task] = _figures(inputs, labels, args.seeds, metric="gini" if task == "play_seconds" else "auc")
        _show(task, found[task])
        if args.out is not None:  # after each task, so that stopping loses one at most
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def design(rows: pd.DataFrame) -> pd.DataFrame:
    """What LightGBM sees.

    Args:
        rows: Rows of a file of prepare.py.

    Returns:
        The features and ids, the first tag and the number of tags, the length of each history, and how often the video
        is in it; 0 for a video without an id of its own.
    """
    made: dict[str, Any] = {
        "first_tag": rows["tag"].map(lambda tags: tags[0] if len(tags) else 0),
        "num_tags": rows["tag"].map(len),
    }
    videos = rows["video"].to_numpy(np.int64)
    for name in HISTORIES:
        lengths = rows[name].map(len).to_numpy(np.int64)
        owners = np.repeat(np.arange(len(rows)), lengths)
        same = np.concatenate([np.zeros(0, np.int64), *rows[name]]).astype(np.int64) == videos[owners]
        made[f"num_{name}"] = lengths
        made[f"times_{name}"] = np.bincount(owners, weights=same & (videos[owners] != 0), minlength=len(rows))
    return rows[[*FEATURES, *IDS]].assign(**made)


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


def _figures(
    inputs: Mapping[str, pd.DataFrame], labels: Mapping[str, Floats], seeds: Sequence[int], *, metric: str
) -> dict[str, Any]:
    """Choose on the validation rows, then train once a seed."""
    measure = gini if metric == "gini" else auc
    tried = {}
    for setting in (Setting(ids, leaves) for ids, leaves in product(USES_OF_IDS, NUM_LEAVES)):
        [scores] = _predict(inputs, labels, setting, metric=metric, seed=seeds[0], on=("validation",))
        tried[setting] = measure(labels["validation"], scores)
    best = max(tried, key=lambda setting: tried[setting])
    found: dict[str, list[float]] = {"validation": [], "test": []}
    for seed in seeds:
        for name, scores in zip(found, _predict(inputs, labels, best, metric=metric, seed=seed, on=found), strict=True):
            found[name].append(round(measure(labels[name], scores), 6))
    grid = {f"ids {setting.ids}, {setting.leaves} leaves": round(value, 6) for setting, value in tried.items()}
    untuned = [round(measure(labels["test"], _untuned(inputs, labels, metric)), 6)]
    return {"metric": metric, "grid": grid, "ids": best.ids, "leaves": best.leaves, **found, "untuned": untuned}


def _show(task: str, figures: Mapping[str, Any]) -> None:
    print(f"{task}: ids {figures['ids']}, {figures['leaves']} leaves")
    for name in ("validation", "test"):
        values = figures[name]
        spread = f"({min(values):.4f} to {max(values):.4f})"
        print(f"  {name:10s}  {figures['metric']:4s}  {np.mean(values):.4f}  {spread}", flush=True)
    print(f"  test, {UNTUNED_ROUNDS} trees, not tuned  {figures['metric']:4s}  {figures['untuned'][0]:.4f}", flush=True)


def _untuned(inputs: Mapping[str, pd.DataFrame], labels: Mapping[str, Floats], metric: str) -> Floats:
    """The scores of the test rows by LightGBM as it comes."""
    import lightgbm  # an optional dependency; main() has checked that it is there

    names = [name for name in inputs["train"] if name not in IDS]
    parameters = {**UNTUNED, "objective": "regression" if metric == "gini" else "binary"}
    train = lightgbm.Dataset(inputs["train"][names], label=labels["train"])
    return np.asarray(lightgbm.train(parameters, train, UNTUNED_ROUNDS).predict(inputs["test"][names]))


def _predict(
    inputs: Mapping[str, pd.DataFrame],
    labels: Mapping[str, Floats],
    setting: Setting,
    *,
    metric: str,
    seed: int,
    on: Sequence[str] | Mapping[str, Any],
) -> list[Floats]:
    import lightgbm  # an optional dependency; main() has checked that it is there

    objective, own = ("regression", "l2") if metric == "gini" else ("binary", "auc")
    names = [name for name in inputs["train"] if setting.ids != "left out" or name not in IDS]
    categories = list(IDS) if setting.ids == "categories" else []
    train = lightgbm.Dataset(inputs["train"][names], label=labels["train"], categorical_feature=categories)
    model = lightgbm.train(
        {**PARAMETERS, "objective": objective, "metric": own, "num_leaves": setting.leaves, "seed": seed},
        train,
        num_boost_round=ROUNDS,
        valid_sets=[train.create_valid(inputs["validation"][names], label=labels["validation"])],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    return [np.asarray(model.predict(inputs[name][names])) for name in on]


if __name__ == "__main__":
    sys.exit(main())
