"""Runs on a GPU: trained, evaluated, resumed, and scored again on the CPU."""

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from tests.distributed.test_ncs4cvr import local_state, same, steps
from tests.runs import interrupted, saved
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.splits import open_data
from torchrec_mtl.data.synthetic import make_config, make_table
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.training.checkpoint import Checkpoints
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.inference import evaluate_run
from torchrec_mtl.training.rewind import rewind, save_origin
from torchrec_mtl.training.run import train
from torchrec_mtl.training.session import open_session
from torchrec_mtl.training.trainer import InterruptedTrainingError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    # FBGEMM says so once a process, in the first backward on any GPU.
    pytest.mark.filterwarnings("ignore:.*B200 optimization:UserWarning"),
]


def tasks(long_view=None, watch_time=None):
    """The planted tasks over all rows, with further keys."""
    return [
        {"name": "click", "kind": "binary", "label": "click"},
        {"name": "long_view", "kind": "binary", "label": "long_view", **(long_view or {})},
        {"name": "watch_time", "kind": "regression", "label": "watch_time", **(watch_time or {})},
    ]


CACHED = {"kernel": "fused_uvm_caching", "cache_load_factor": 0.2}


def tables_that(**how):
    """The planted features, all tables with further keys."""
    features = make_config("unused", run_dir="unused")["features"]
    return {**features, "tables": [{**table, **how} for table in features["tables"]]}


CASES = {
    "fp16_tables": {"features": tables_that(dtype="fp16")},
    "bf16": {"train": {"epochs": 2, "device": "cuda", "precision": "bf16"}, "head": {"type": "mmoe", "tower": [8]}},
    "tables_in_host_memory": {"features": tables_that(kernel="fused_uvm")},
    "cached_tables": {"features": tables_that(**CACHED)},
    "cached_fp16_tables_fetched_ahead": {
        "features": tables_that(**CACHED, dtype="fp16"),
        "train": {"epochs": 2, "device": "cuda", "pipeline": "prefetch_sparse_dist"},
    },
    "htlnet": {"gradient": {"type": "htlnet", "core": "watch_time"}},
    "htlnet_rows": {"gradient": {"type": "htlnet", "core": "watch_time", "exact": "rows"}},
    "metabalance_rows": {"gradient": {"type": "metabalance", "core": "watch_time", "exact": "rows"}},
    "pcgrad": {"gradient": {"type": "pcgrad"}},  # solved and drawn on the CPU
    "gradnorm": {"gradient": {"type": "gradnorm"}},
    "uncertainty": {"gradient": {"type": "uncertainty"}},
    "ncs4cvr": {"head": {"type": "ncs4cvr", "shared": [16, 8], "rounds": 2, "grow": 0.1, "batches": "alternate"}},
    "gate_order_ordinal": {
        "tasks": tasks(
            long_view={"order": {"below": "click"}}, watch_time={"gate": "click", "loss": {"type": "ordinal"}}
        )
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_on_cuda_goes_on_and_is_evaluated_on_the_cpu_alike(tmp_path, monkeypatch, case):
    path = str(tmp_path / "train.parquet")
    pq.write_table(make_table(1500, seed=0), path, row_group_size=300)
    raw = make_config(path, run_dir=str(tmp_path / "run"), space=False)
    raw["data"] |= {"eval": path, "test": path}
    raw["head"] = {"type": "htlnet", "tower": [16, 8], "norm": "batch"}
    raw["train"] = {"epochs": 2, "device": "cuda"}
    config = parse(raw | CASES[case])
    with (tmp_path / "log").open("w") as log, process_group("cuda") as device:
        result = train(config, device, console=Console(file=log))
        again = train(config, device, console=Console(file=log))
    assert result.trained
    assert not again.trained
    for task, metrics in result.evaluation.tasks.items():
        # Sums on a GPU come in any order: a last bit of a prediction can swap two rows in AUC, Spearman, and Gini.
        assert again.evaluation.tasks[task] == pytest.approx(metrics, rel=1e-3, abs=1e-5)
    monkeypatch.setattr("torchrec_mtl.device.has_cuda", lambda: False)
    monkeypatch.setattr("torchrec_mtl.training.distributed.has_cuda", lambda: False)
    _, on_cpu, _ = evaluate_run(config.run_dir, [path])
    close = 1e-4 if config.train.precision == "fp32" else 1e-2
    for task, metrics in result.evaluation.tasks.items():
        assert on_cpu.tasks[task]["loss"] == pytest.approx(metrics["loss"], rel=close)


@pytest.mark.parametrize("way", ["seed", "checkpoint"])
def test_rewinding_restores_tables_that_fused_adam_trains_and_its_count_of_steps(tmp_path, way):
    path = str(tmp_path / "train.parquet")
    pq.write_table(make_table(1500, seed=0), path, row_group_size=300)
    raw = make_config(path, run_dir=str(tmp_path / "run"), space=False)
    raw["head"] = {"type": "ncs4cvr", "shared": [16, 8], "rounds": 2, "choose": "last"}
    raw["optim"] = {"sparse": {"type": "adam", "lr": 0.01}, "dense": {"type": "adam", "lr": 0.01}}
    raw["train"] = {"device": "cuda"}
    config = parse(raw)
    with process_group("cuda") as device:
        opened = open_data(config)
        statistics = collect(opened.train, config.data, config.features, config.tasks)
        session = open_session(config, statistics, device)
        reader, checkpoints, begun = session.reader(opened.train, train=True), None, 0
        if way == "checkpoint":
            steps(session, reader, 0, 2)
            checkpoints, begun = Checkpoints(config.run_dir), 2
            save_origin(session, checkpoints, tables=True)
        session.optimizers.set_step(begun)
        origin = local_state(session)
        assert any(" iter" in key for key in origin)
        assert any("exp_avg_sq" in key and "embedding" in key for key in origin)
        steps(session, reader, 1, 3)
        assert not same(origin, local_state(session))
        rewind(session, checkpoints, tables=True, updates=begun)
        assert same(origin, local_state(session))


@pytest.mark.parametrize(
    "how", [{"dtype": "fp16"}, {**CACHED, "dtype": "fp16"}, CACHED], ids=["fp16", "cached_fp16", "cached"]
)
def test_a_run_resumes_where_rows_are_rounded_at_random_or_cached(tmp_path, how):
    path = str(tmp_path / "train.parquet")
    pq.write_table(make_table(1500, seed=0), path, row_group_size=300)
    found = []
    for name in ("whole", "parts"):
        raw = make_config(path, run_dir=str(tmp_path / name), space=False)
        raw |= {"features": tables_that(**how), "head": {"type": "shared_bottom", "shared": [16], "tower": [8]}}
        config = parse(raw | {"train": {"device": "cuda"}})
        with (tmp_path / "log").open("w") as log, process_group("cuda") as device:
            if name == "parts":
                with interrupted(9, 0, SharedBottom), pytest.raises(InterruptedTrainingError):
                    train(config, device, console=Console(file=log))
            train(config, device, console=Console(file=log))
        found.append(saved(tmp_path / name))
    assert found[0].keys() == found[1].keys()
    assert all(torch.allclose(found[0][key].float(), found[1][key].float(), atol=1e-5) for key in found[0])
