"""The change that is proposed makes the run fit, and no cheaper one was left out."""

from typing import Any

from tests.unit.planning.configs import config, raw
from torchrec_mtl.config.load import parse
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.planning.changes import changes
from torchrec_mtl.planning.fit import Mended, changed, mend
from torchrec_mtl.planning.result import Cluster, Plan, Shortage
from torchrec_mtl.planning.solve import explained, solve

ONE_GPU = Cluster(1, 1, "cuda", 16.0, 0.0)


def mended(run: RunConfig, cluster: Cluster) -> Mended:
    """Mend, and plan once more with what the last attempt says, as a user would."""
    shortage = solve(run, cluster)
    assert isinstance(shortage, Shortage), "fits already"
    found = mend(run, explained(shortage, run))
    if found.plan is not None:
        last = found.attempts[-1]
        assert (last.fits, last.reason) == (True, "")
        assert [a.what for a in found.attempts if a.fits] == [last.what]
        again = solve(changed(run, last.overrides), found.plan.cluster)
        assert isinstance(again, Plan)
        assert again.tables == found.plan.tables
        assert found.config == changed(run, last.overrides)
    return found


def bound_to(table: str, sharding: list[str], **how: Any) -> RunConfig:
    made = raw(**how)
    next(t for t in made["features"]["tables"] if t["name"] == table)["sharding"] = sharding
    return parse(made)


def test_a_forbidden_sharding_type_is_allowed_first() -> None:
    run = bound_to("user", ["table_wise"], rows={"user": 1_000_000_000})
    found = mended(run, Cluster(1, 4, "cuda", 16.0, 0.0))
    assert [a.overrides for a in found.attempts] == [("features.tables.user.sharding=null",)]
    assert {t.name: t.sharding for t in found.plan.tables}["user"] in {"row_wise", "table_row_wise"}  # type: ignore[union-attr]


def test_columns_are_cut_where_a_cpu_has_no_other_part() -> None:
    run = config("cpu", rows={"user": 10_000_000}, dim=512)
    found = mended(run, Cluster(1, 4, "cpu", None, 64.0))
    assert found.attempts[-1].overrides == ("features.tables.user.sharding=[table_wise, column_wise]",)
    assert "not quite the same optimizer" in found.attempts[-1].what


def test_host_memory_is_next_and_the_planner_uses_it() -> None:
    found = mended(config(rows={"user": 1_000_000_000}), ONE_GPU)
    assert found.attempts[-1].options == ("--ddr-gib 128",)
    assert found.attempts[-1].overrides == ()
    user = found.plan.tables[0]  # type: ignore[union-attr]
    assert user.kernel in {"fused_uvm", "fused_uvm_caching"}
    assert sum(s.ddr_bytes for s in user.shards) >= 1_000_000_000 * 36


def test_a_table_bound_to_the_gpu_is_let_go_first() -> None:
    made = raw(rows={"user": 1_000_000_000})
    made["features"]["tables"][0]["kernel"] = "fused"
    found = mended(parse(made), Cluster(1, 1, "cuda", 16.0, 64.0))
    assert [a.overrides for a in found.attempts] == [("features.tables.user.kernel=auto",)]


def test_a_smaller_cache_is_tried_where_the_host_has_room() -> None:
    made = raw(rows={"user": 1_000_000_000})
    made["features"]["tables"][0] |= {"kernel": "fused_uvm_caching", "cache_load_factor": 0.9}
    found = mended(parse(made), Cluster(1, 1, "cuda", 16.0, 64.0))
    assert [a.overrides for a in found.attempts] == [("features.tables.user.cache_load_factor=0.05",)]
    user = found.plan.tables[0]  # type: ignore[union-attr]
    assert user.kernel == "fused_uvm_caching"
    gpu, host = (sum(getattr(s, f"{kind}_bytes") for s in user.shards) for kind in ("hbm", "ddr"))
    assert (round(host / 1e9), round(gpu / 1e9, 1)) == (36, 6.6)  # 4 GB of it tell which rows are in the cache


def test_then_numbers_are_halved_for_as_few_tables_as_it_takes() -> None:
    rows = {"user": 2_500_000_000, "tag": 100_000_000}  # 84 and 3 GiB
    found = mended(config(rows=rows), Cluster(1, 1, "cuda", 80.0, 0.25))
    assert found.attempts[-1].overrides == ("features.tables.user.dtype=fp16",)
    rows["tag"] = 1_900_000_000  # 64 GiB: half of one is not enough
    found = mended(config(rows=rows), Cluster(1, 1, "cuda", 104.0, 0.25))
    assert found.attempts[-1].overrides == ("features.tables.user.dtype=fp16", "features.tables.tag.dtype=fp16")


def test_then_dim_is_halved_for_as_few_tables_as_it_takes() -> None:
    made = raw(rows={"user": 5_000_000_000, "tag": 200_000_000})  # 93 and 4 GiB
    for table in made["features"]["tables"]:
        table["dtype"] = "fp16"
    found = mended(parse(made), Cluster(1, 1, "cuda", 80.0, 0.25))
    assert found.attempts[-1].overrides == ("features.tables.user.dim=4",)


def test_a_cpu_takes_columns_and_nodes_together() -> None:
    run = config("cpu", rows={"user": 40_000_000}, dim=640)  # 95 GiB, in 5 parts of 128 columns
    found = mended(run, Cluster(1, 1, "cpu", None, 20.0))
    assert found.attempts[-1].options == ("--nodes 8",)
    assert found.attempts[-1].overrides == ("features.tables.user.sharding=[table_wise, column_wise]",)


def test_tables_of_sequences_keep_one_width() -> None:
    made = raw("cpu", rows={"item": 90_000_000}, dim=64)
    made["features"]["sequences"].append({"name": "liked", "table": "tag", "max_length": 5})
    run = parse(made)
    shortage = solve(run, Cluster(1, 1, "cpu", None, 12.0))
    assert isinstance(shortage, Shortage)
    first = next(c for c in changes(run, shortage) if any(".dim=" in o for o in c.overrides))
    assert first.overrides == ("features.tables.item.dim=32", "features.tables.tag.dim=32")
    assert changed(run, first.overrides).features.tables[2].dim == 32


def test_nodes_are_last() -> None:
    found = mended(config(rows={"user": 4_000_000_000}, dim=4), Cluster(1, 2, "cuda", 8.0, 0.25))
    assert [a.options for a in found.attempts][-3:] == [("--nodes 2",), ("--nodes 4",), ("--nodes 8",)]
    assert found.plan is not None
    assert found.plan.cluster.nodes == 8  # 75 GiB of rows and states, 7.2 GiB a GPU


def test_it_says_so_where_nothing_helps() -> None:
    found = mended(config(rows={"user": 90_000_000_000}), Cluster(1, 1, "cuda", 1.0, 1.0))
    assert found.plan is None
    assert found.attempts
    assert not any(a.fits for a in found.attempts)
    assert all(a.reason for a in found.attempts)


def test_every_step_keeps_what_costs_nothing() -> None:
    run = bound_to("user", ["table_wise"], rows={"user": 90_000_000_000})
    shortage = solve(run, ONE_GPU)
    assert isinstance(shortage, Shortage)
    assert all("features.tables.user.sharding=null" in change.overrides for change in changes(run, shortage))
