"""DMMP's benchmark: what counting finds, by hand, and a suite whose models differ in what they say."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import sparse

from benchmarks import dmmp
from benchmarks.dmmp import NO_SOFTMAX, OURS, PAIRS, Counted, baselines, cosines, differences, models, transitions
from torchrec_mtl.bench.suite import load_suite
from torchrec_mtl.config.load import load_config

ROOT = Path(__file__).parents[3]
# Users' ratings in order; the last of each is to be found. Items are named 10, 20, 30, 40.
ORDERS = {1: [10, 20, 30], 2: [10, 20, 40], 3: [20, 30, 10], 4: [10, 30, 20]}


def test_cosines_are_of_sets_of_users():
    users, items = np.array([1, 1, 2, 2, 3, 1]), np.array([0, 1, 0, 1, 1, 0])  # one pair twice
    found = cosines(users, items, 3).toarray()
    assert found[0, 1] == pytest.approx(2 / np.sqrt(2 * 3))
    assert found[1, 0] == found[0, 1]
    assert not found.diagonal().any()
    assert not found[2].any()


def test_transitions_count_what_came_next():
    pairs = pd.DataFrame({"last": [0, 10, 10, 20], "item": [10, 20, 20, 10]})  # 0: there was none
    found = transitions(pairs, pd.Series([0, 1], index=[10, 20])).toarray()
    assert found.tolist() == [[0, 2], [1, 0]]


def test_blocks_of_counts_are_those_of_the_whole():
    rows = sparse.random(5, 7, density=0.5, random_state=0, format="csr")
    ties = np.linspace(0, 1e-3, 7, dtype=np.float32)
    scorer = Counted(rows, ties, 5)
    whole = rows.toarray().astype(np.float32) + ties
    np.testing.assert_array_equal(scorer.scores(slice(1, 4), slice(2, 6)), whole[1:4, 2:6])
    alike = Counted(rows[:1], ties, 5)
    np.testing.assert_array_equal(alike.scores(slice(1, 4), slice(2, 6)), np.repeat(whole[:1, 2:6], 3, axis=0))


@pytest.fixture
def config(tmp_path):
    train, test = [], []
    for user, items in ORDERS.items():
        for i, item in enumerate(items):
            row = {"user": user, "movie": item, "last": items[i - 1] if i else 0, "seen": items[:i], "click": 1}
            (test if i == 2 else train).append(row)
        train.append({"user": user, "movie": 40, "last": 0, "seen": [], "click": 0})  # a negative counts nowhere
    pd.DataFrame(train).to_parquet(tmp_path / "train.parquet")
    pd.DataFrame(test).to_parquet(tmp_path / "test.parquet")
    pd.DataFrame({"movie": [10, 20, 30, 40]}).to_parquet(tmp_path / "items.parquet")
    sides = [{"name": "user", "table": "t", "side": "user"}, {"name": "movie", "table": "t", "side": "item"}]
    raw = {
        "data": {name: str(tmp_path / f"{name}.parquet") for name in ("train", "test")},
        "features": {"tables": [{"name": "t", "rows": 50, "dim": 4}], "sparse": sides},
        "tasks": [{"name": "click", "kind": "binary", "label": "click"}],
        "head": {"type": "dmmp"},
        "retrieval": {
            "items": str(tmp_path / "items.parquet"),
            "item": "movie",
            "query": "user",
            "seen": "seen",
            "ks": [1],
        },
        "run_dir": str(tmp_path / "run"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "run.yaml"


def test_what_counting_finds_is_what_one_finds_by_hand(config):
    """In train, 10 is rated three times, 20 three times, 30 twice; 10 then 20 twice, 20 then 30, 10 then 30 once."""
    table = baselines(config, "test", "last")
    found = {row[0].text: row[2].text for row in table.rows}
    # Of what was not seen: users 1 and 2 (seen 10, 20) get 30; 3 (20, 30) gets 10; 4 (10, 30) gets 20.
    assert found["popularity"] == "0.7500"
    # After 20 comes 30: users 1, 2. After 30 nothing came: ties by popularity, 10 and 20.
    assert found["last-item transition"] == "0.7500"
    assert found["item cosine"] == "0.7500"


def outcome(name, **values):
    run = SimpleNamespace(task_names=("click", "like"))
    return SimpleNamespace(pair=SimpleNamespace(model=SimpleNamespace(name=name), run=run), values=values)


@pytest.fixture
def outcomes(monkeypatch):
    monkeypatch.setattr(dmmp, "by_seed", lambda found, key: found.values.get(key[0], {}))
    return [
        outcome(OURS, click={0: 0.5, 1: 0.7}, like={0: 0.1, 1: 0.2}),
        outcome("towers", click={0: 0.4, 1: 0.5, 2: 9.0}),
        outcome(NO_SOFTMAX, click={0: 0.6, 1: 0.6}, like={0: 0.3, 1: 0.3}),
        outcome(f"three towers, {NO_SOFTMAX}", click={0: 0.1, 1: 0.1}, like={0: 0.1, 1: 0.0}),
    ]


def test_models_are_means_over_seeds(outcomes):
    table = models(outcomes, ["auc"])
    assert table.columns == ("model", "click auc", "like auc")
    assert [row[1].text[:6] for row in table.rows] == ["0.6000", "3.3000", "0.6000", "0.1000"]
    assert [row[2].text[:6] for row in table.rows] == ["0.1500", "-", "0.3000", "0.0500"]


def test_differences_are_of_the_seeds_that_both_have(outcomes):
    table = differences(outcomes, ["auc"])
    found = {row[0].text: tuple(cell.text[:7] for cell in row[1:]) for row in table.rows}
    assert found == {
        f"towers minus {OURS}": ("-0.1500", "-"),
        f"{NO_SOFTMAX} minus {OURS}": ("+0.0000", "+0.1500"),
        f"three towers, {NO_SOFTMAX} minus {OURS}": ("-0.5000", "-0.1000"),
        f"{NO_SOFTMAX} minus three towers, {NO_SOFTMAX}": ("+0.5000", "+0.2500"),
    }


@pytest.mark.parametrize("suite", ["movielens", "kuairand"])
def test_what_is_compared_is_in_the_suites(suite):
    names = {m.name for m in load_suite(ROOT / "benchmarks" / f"dmmp_{suite}.yaml").models}
    known = PAIRS if suite == "kuairand" else PAIRS[:-1]
    assert {OURS, *(name for pair in known for name in pair)} <= names


def test_the_suite_has_dmmp_with_nothing_changed_and_every_ablation_of_the_papers():
    found = {m.name: m for m in load_suite(ROOT / "benchmarks" / "dmmp_movielens.yaml").models}
    assert found[OURS].set == ()
    assert len({m.set for m in found.values()}) == len(found)
    heads = {name: load_config(ROOT / "examples/movielens/dmmp.yaml", m.set).head for name, m in found.items()}
    assert {"none", "mmoe", "shared_bottom", "cgc"} == {head.teacher for head in heads.values()}
    towers = {(head.dim, head.student) for head in heads.values()}
    assert len(towers) == 1
