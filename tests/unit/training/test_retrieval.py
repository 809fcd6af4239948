"""Retrieval in evaluations: equal to ranking by hand, whoever a query is, and what is wrong with a corpus."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.retrieval_runs import NUM_ITEMS, make_files, retrieval_config, vectors
from tests.runs import train_one, write
from torchrec_mtl.config.load import ConfigError, parse
from torchrec_mtl.data.files import open_files
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.run_dir import load_run
from torchrec_mtl.training.session import open_session


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(files, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "run"
    with process_group("cpu"):
        result = train_one(retrieval_config(files, run_dir))
    return run_dir, result.evaluation.tasks


def test_metrics_are_those_of_ranking_the_corpus_by_hand(files, trained):
    run_dir, metrics = trained
    items, queries = vectors(run_dir, files["items"], "item"), vectors(run_dir, files["eval"], "user").sum(1)
    names = pq.read_table(files["items"])["item_id"].to_pylist()
    rows = pq.read_table(files["eval"]).to_pylist()
    assert len(items) == NUM_ITEMS
    assert len(queries) == len(rows)
    first = {}
    for place, row in enumerate(rows):
        first.setdefault(row["user_id"], place)
    for task in ("click", "long_view"):
        recalls, hits = [], []
        for user, place in first.items():
            mine = [row for row in rows if row["user_id"] == user]
            seen = {item for row in mine for item in row["seen"]}
            wanted = {row["item_id"] for row in mine if row[task]} - seen
            if wanted:
                scores = dict(zip(names, (items @ queries[place]).tolist(), strict=True))
                top = sorted((name for name in names if name not in seen), key=lambda name: -scores[name])[:10]
                recalls.append(len(wanted & set(top)) / len(wanted))
                hits.append(bool(wanted & set(top)))
        assert metrics[task]["queries"] == len(recalls) > 10
        assert metrics[task]["recall@10"] == pytest.approx(np.mean(recalls), abs=1e-6)
        assert metrics[task]["hit@10"] == pytest.approx(np.mean(hits), abs=1e-6)
        assert 0 < metrics[task]["coverage@3"] < metrics[task]["coverage@10"] <= 1
        assert math.isfinite(metrics[task]["auc"])  # those of the rows stay


def test_a_scores_row_is_the_inner_product_of_its_vectors(files, trained):
    run_dir, _ = trained
    config, statistics, checkpoints = load_run(run_dir)
    with process_group("cpu") as device:
        session = open_session(config, statistics, device)
        session.restore(checkpoints, "latest", weights_only=True)
        session.model.eval()
        with torch.no_grad():
            [out, *_] = list(session.run(session.read(session.reader(open_files(files["eval"]), train=False))))
    torch.testing.assert_close((out.vectors["query"].sum(1) * out.vectors["item"]).sum(1), out.further["score"])


def test_vectors_need_the_columns_of_their_side_alone(files, trained, tmp_path):
    run_dir, _ = trained
    whole = vectors(run_dir, files["eval"], "user")
    users = pq.read_table(files["eval"]).select(["user_id", "watched"])
    alone = vectors(run_dir, write(tmp_path / "users.parquet", users), "user")
    np.testing.assert_array_equal(alone, whole)


def test_an_item_that_is_there_twice_is_refused(files, tmp_path):
    corpus = pq.read_table(files["items"])
    twice = write(tmp_path / "items.parquet", pa.concat_tables([corpus, corpus.slice(0, 1)]))
    with process_group("cpu"), pytest.raises(ValueError, match=r"1 rows name an item that another row names.*one row"):
        train_one(retrieval_config(files | {"items": twice}, tmp_path / "run"))


CORPUS_CHANGES = {
    "no names": (lambda items: items.drop_columns(["item_id"]), "retrieval.item, column 'item_id': not in .*items"),
    "no feature": (lambda items: items.drop_columns(["tags"]), "feature 'tags', column 'tags': not in .*items"),
    "other names": (lambda items: _as_text(items), "retrieval.item, .*: integers in .*eval.parquet, but strings in"),
}


@pytest.mark.parametrize(("change", "message"), CORPUS_CHANGES.values(), ids=CORPUS_CHANGES)
def test_a_corpus_that_does_not_fit_is_refused_before_training(files, tmp_path, change, message):
    wrong = {"items": write(tmp_path / "items.parquet", change(pq.read_table(files["items"])))}
    with process_group("cpu"), pytest.raises(ConfigError, match=message):
        train_one(retrieval_config(files | wrong, tmp_path / "run"))


def test_rows_without_what_was_seen_are_refused_before_training(files, tmp_path):
    rows = pq.read_table(files["eval"]).drop_columns(["seen"])
    wrong = {"eval": write(tmp_path / "eval.parquet", rows)}
    with process_group("cpu"), pytest.raises(ConfigError, match=r"data.eval: retrieval.seen, column 'seen': not in"):
        train_one(retrieval_config(files | wrong, tmp_path / "run"))


def _as_text(items):
    names = items["item_id"].cast(pa.string())
    return items.set_column(items.schema.get_field_index("item_id"), "item_id", names)


def test_a_head_without_vectors_cannot_retrieve(files, tmp_path):
    raw = retrieval_config(files, tmp_path / "run", head={"type": "esmm"})
    with pytest.raises(ConfigError, match=r"retrieval: head 'esmm' scores rows and has no vectors"):
        parse(raw)


def test_in_batch_negatives_need_to_know_the_items(files, tmp_path):
    raw = retrieval_config(files, tmp_path / "run")
    del raw["retrieval"]
    parse(raw)
    raw["head"] = raw["head"] | {"in_batch_weight": 0.5}
    with pytest.raises(ConfigError, match=r"head.in_batch_weight: .*retrieval.item"):
        parse(raw)


@pytest.mark.parametrize(("metric", "fits"), [("click/recall@10", True), ("click/recall@7", False)])
def test_training_may_be_watched_by_what_is_found(files, tmp_path, metric, fits):
    raw = retrieval_config(files, tmp_path / "run", train={"monitor": {"metric": metric}})
    if fits:
        assert parse(raw).train.monitor.metric == metric
    else:
        with pytest.raises(ConfigError, match=r"no metric 'recall@7'"):
            parse(raw)
