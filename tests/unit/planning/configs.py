"""The planted config with tables of any size: on ``meta`` they cost nothing."""

from pathlib import Path
from typing import Any

from tests.runs import raw_config
from torchrec_mtl.config.load import parse
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.planning.result import Cluster, Plan
from torchrec_mtl.planning.solve import solve

CPU = Cluster(1, 2, "cpu", None, 128.0)
GPUS = Cluster(2, 2, "cuda", 16.0, 64.0)


def raw(
    device: str = "cuda", *, rows: dict[str, int] | None = None, dim: int | None = None, **sections: Any
) -> dict[str, Any]:
    """As YAML gives it: dim 8, row-wise Adagrad, global batch 64."""
    plain = {"optim": {"sparse": {"type": "rowwise_adagrad"}}, "gradient": {"type": "sum"}}
    made = raw_config("train.parquet", Path("run"), **{**plain, **sections})
    made["train"] = {**made.get("train", {}), "device": device}
    for table in made["features"]["tables"]:
        table["rows"] = (rows or {}).get(table["name"], table["rows"])
        table["dim"] = dim or table["dim"]
    return made


def config(
    device: str = "cuda", *, rows: dict[str, int] | None = None, dim: int | None = None, **sections: Any
) -> RunConfig:
    return parse(raw(device, rows=rows, dim=dim, **sections))


def planned(run: RunConfig, cluster: Cluster) -> Plan:
    found = solve(run, cluster)
    assert isinstance(found, Plan), found
    return found
