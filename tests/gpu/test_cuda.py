"""Runs on a GPU: trained, evaluated, resumed, and scored again on the CPU."""

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console

from torchrec_mtl.config.load import parse
from torchrec_mtl.data.synthetic import make_config, make_table
from torchrec_mtl.training.distributed import process_group
from torchrec_mtl.training.inference import evaluate_run
from torchrec_mtl.training.run import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]


def tasks(long_view=None, watch_time=None):
    """The planted tasks over all rows, with further keys."""
    return [
        {"name": "click", "kind": "binary", "label": "click"},
        {"name": "long_view", "kind": "binary", "label": "long_view", **(long_view or {})},
        {"name": "watch_time", "kind": "regression", "label": "watch_time", **(watch_time or {})},
    ]


CASES = {
    "htlnet": {"gradient": {"type": "htlnet", "core": "watch_time"}},
    "htlnet_rows": {"gradient": {"type": "htlnet", "core": "watch_time", "exact": "rows"}},
    "metabalance_rows": {"gradient": {"type": "metabalance", "core": "watch_time", "exact": "rows"}},
    "pcgrad": {"gradient": {"type": "pcgrad"}},  # solved and drawn on the CPU
    "gradnorm": {"gradient": {"type": "gradnorm"}},
    "uncertainty": {"gradient": {"type": "uncertainty"}},
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
        assert again.evaluation.tasks[task] == pytest.approx(metrics)
    monkeypatch.setattr("torchrec_mtl.device.has_cuda", lambda: False)
    monkeypatch.setattr("torchrec_mtl.training.distributed.has_cuda", lambda: False)
    _, on_cpu, _ = evaluate_run(config.run_dir, [path])
    for task, metrics in result.evaluation.tasks.items():
        assert on_cpu.tasks[task]["loss"] == pytest.approx(metrics["loss"], rel=1e-4)
