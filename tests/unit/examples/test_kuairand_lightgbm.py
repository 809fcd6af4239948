"""KuaiRand's LightGBM reference: what it may see, its metrics, and that the validation rows choose."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

LABELS = {"is_click", "long_view", "is_like", "play_time_s", "play_ratio", "played"}


def load_script() -> ModuleType:
    path = Path(__file__).parents[3] / "examples" / "kuairand" / "lightgbm_reference.py"
    spec = importlib.util.spec_from_file_location("kuairand_lightgbm_reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_script()


def make_rows(count: int, *, seed: int = 0) -> pd.DataFrame:
    """Rows whose click is the tab's, and whose other columns say nothing."""
    generator = np.random.default_rng(seed)
    rows = pd.DataFrame({name: generator.integers(0, 3, count) for name in (*reference.FEATURES, *reference.IDS)})
    for name in (*reference.HISTORIES, "tag"):
        rows[name] = [generator.integers(0, 4, length).tolist() for length in generator.integers(0, 4, count)]
    for name in LABELS:
        rows[name] = generator.integers(0, 2, count)
    rows["is_click"] = (rows["tab"] > 0).astype(np.int64)
    rows["play_time_s"] = rows["tab"] * 10.0
    return rows.assign(user_id=1, video_id=1, time_ms=1, day_of_week=1)


def test_no_outcome_key_or_day_is_an_input() -> None:
    seen = set(reference.design(make_rows(5)))
    assert not seen & (LABELS | {"user_id", "video_id", "time_ms", "day_of_week"})
    assert {"tab", "video_like_rate", "author_long_watch_rate", "user"} < seen


def test_counts_of_a_rows_histories() -> None:
    rows = make_rows(3)
    rows["video"] = [7, 7, 0]
    rows["watched"] = [[7, 1, 7], [], [0, 0]]
    rows["tag"] = [[3, 4], [], [5]]
    made = reference.design(rows)
    assert made["num_watched"].tolist() == [3, 0, 2]
    assert made["times_watched"].tolist() == [2, 0, 0]  # 0 stands for many videos
    assert made["first_tag"].tolist() == [3, 0, 5]
    assert made["num_tags"].tolist() == [2, 0, 1]


def test_metrics_on_known_orders() -> None:
    assert reference.auc(np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 2.0, 2.0, 3.0])) == 0.875
    seconds = np.array([0.0, 3.0, 1.0, 9.0])
    assert reference.gini(seconds, seconds) == 1.0
    assert reference.gini(seconds, -seconds) == -1.0


def test_settings_are_chosen_on_the_validation_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trees of 63 leaves are right on the validation rows, and others on the test rows: the former are taken."""
    calls = []

    def predict(inputs, labels, setting, *, metric, seed, on):
        calls.append((setting, seed, tuple(on)))
        right = {"validation": setting.leaves == 63, "test": setting.leaves != 63}
        return [labels[name] if right[name] else -labels[name] for name in on]

    monkeypatch.setattr(reference, "_predict", predict)
    monkeypatch.setattr(reference, "_untuned", lambda inputs, labels, metric: labels["test"])
    labels = {name: np.array([0.0, 1.0]) for name in reference.SPLITS}
    found = reference._figures({}, labels, [0, 1], metric="auc")
    assert (found["leaves"], found["validation"], found["test"]) == (63, [1.0, 1.0], [0.0, 0.0])
    tuning = len(reference.USES_OF_IDS) * len(reference.NUM_LEAVES)
    assert [(on, seed) for _, seed, on in calls] == [
        *[(("validation",), 0)] * tuning,
        (("validation", "test"), 0),
        (("validation", "test"), 1),
    ]


def test_it_learns_and_writes_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightgbm")
    monkeypatch.setattr(reference, "ROUNDS", 5)
    for seed, name in enumerate(reference.SPLITS):
        make_rows(600, seed=seed).to_parquet(tmp_path / f"{name}.parquet")
    out = tmp_path / "made" / "figures.json"
    words = ["--data", str(tmp_path), "--out", str(out), "--seeds", "0", "1", "--tasks", "click", "play_seconds"]
    assert reference.main(words) == 0
    figures = json.loads(out.read_text())
    assert list(figures) == ["click", "play_seconds"]
    assert len(figures["click"]["test"]) == 2
    assert min(figures["click"]["test"]) > 0.99
    assert len(figures["click"]["untuned"]) == 1
    assert figures["click"]["untuned"][0] > 0.99
    assert figures["play_seconds"]["metric"] == "gini"
    assert "test        auc" in capsys.readouterr().out


def test_it_says_what_to_run_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(["--data", str(tmp_path)]) == 1
    assert "prepare.py first" in capsys.readouterr().err
