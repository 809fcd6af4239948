"""A plan's figures against sizes by hand, TorchRec's own rating, and the plan that training makes."""

import os
from typing import Any

import pytest
import torch

from tests.unit.planning.configs import CPU, GPUS, config, planned, raw
from torchrec_mtl.config.load import parse
from torchrec_mtl.model import build_model
from torchrec_mtl.planning.result import GIB, Cluster, Cost, Shortage, Summary, TablePlan
from torchrec_mtl.planning.solve import explained, meta_model, solve
from torchrec_mtl.testing.ranks import run_ranks
from torchrec_mtl.training.sharding import make_planner, make_topology, shard, sharders

IDS = {"user": 1, "item": 1 + 10, "tag": 3}  # of a sample: the item's id and 10 of a history, 3 tags
HOST = 64 * GIB


@pytest.mark.parametrize("ranks", [1, 2])
def test_memory_on_the_cpu_is_rows_states_ids_and_outputs(ranks: int) -> None:
    run = config("cpu")
    batch = run.data.batch_size
    for table in planned(run, Cluster(1, ranks, "cpu", None, 128.0)).tables:
        ids = IDS[table.name] * batch  # of the global batch, all on the one rank that holds the table
        # Pooled: one vector for each feature and sample. The item's table is read by a history: one for each id.
        vectors = {"user": batch, "tag": batch, "item": ids}[table.name]
        weights, states = table.rows * table.dim * 4, table.rows * 4
        assert [s.ddr_bytes for s in table.shards] == [weights + states + ids * 8 + vectors * table.dim * 4]
        assert [s.hbm_bytes for s in table.shards] == [0]


@pytest.mark.parametrize(("optimizer", "numbers"), [("rowwise_adagrad", 9), ("adagrad", 16), ("adam", 24), ("sgd", 8)])
def test_gpu_memory_of_all_parts_is_that_of_the_table(optimizer: str, numbers: int) -> None:
    rows = {"user": 1_000_000}
    run = config(rows=rows, optim={"sparse": {"type": optimizer}})
    user = next(t for t in planned(run, GPUS).tables if t.name == "user")
    assert user.kernel == "fused"
    assert sum(s.rows * s.columns for s in user.shards) == 1_000_000 * 8
    ids = 8 * sum(s.lookups for s in user.shards)
    vectors = sum(64 * s.columns * 4 for s in user.shards)  # one of each part for every sample of the global batch
    assert sum(s.hbm_bytes for s in user.shards) == 1_000_000 * numbers * 4 + ids + vectors


def test_ranks_add_up_to_the_tables() -> None:
    plan = planned(config(rows={"user": 3_000_000, "item": 50_000}), GPUS)
    shards = [s for t in plan.tables for s in t.shards]
    assert len(shards) == sum(r.shards for r in plan.ranks)
    for field in ("hbm_bytes", "ddr_bytes", "lookups"):
        assert sum(getattr(r, field) for r in plan.ranks) == pytest.approx(sum(getattr(s, field) for s in shards))
    assert sum((r.cost for r in plan.ranks), start=Cost()).total == pytest.approx(sum(s.cost.total for s in shards))
    assert [r.node for r in plan.ranks] == [0, 0, 1, 1]
    for rank in plan.ranks:
        assert list(rank.tables) == [t.name for t in plan.tables if rank.rank in {s.rank for s in t.shards}]


def test_lookups_are_the_ids_of_a_step() -> None:
    plan = planned(config(rows={"user": 3_000_000}), GPUS)
    for table in plan.tables:
        assert "column" not in table.sharding
        assert sum(s.lookups for s in table.shards) == pytest.approx(IDS[table.name] * 64)


def test_the_slowest_rank_is_what_torchrec_rates_the_plan() -> None:
    run = config("cpu", rows={"user": 3_000_000})
    topology = make_topology(2, 2, "cpu", hbm_bytes=None, ddr_bytes=HOST)
    planner = make_planner(run, topology)
    planner.plan(meta_model(run, "cpu"), sharders())
    assert planner._best_plan is not None
    assert planned(run, CPU).summary.step_ms == pytest.approx(planner._perf_model.rate(planner._best_plan))


def test_imbalance_is_the_largest_over_the_mean() -> None:
    plan = planned(config("cpu", rows={"user": 3_000_000}), CPU)
    times, memory = [r.cost.total for r in plan.ranks], [r.ddr_bytes for r in plan.ranks]
    assert plan.summary == Summary(
        max(times), pytest.approx(2 * max(times) / sum(times)), 1.0, pytest.approx(2 * max(memory) / sum(memory))
    )
    assert plan.summary.ddr_imbalance > 1.9  # the large table lies whole on one rank


def test_a_model_of_terabytes_is_planned_without_memory() -> None:
    rows = {"user": 2_000_000_000, "item": 2_000_000_000}
    run = config("cpu", rows=rows, head={"type": "single_task"})
    model = meta_model(run, "cpu")
    assert sum(p.numel() * 4 for p in model.embeddings.parameters()) > 3e11
    plan = planned(run, Cluster(1, 2, "cpu", None, 2048.0))
    assert all(p.is_meta for p in [*model.parameters(), *model.objective.parameters()])
    copies = {f"{table}@{task}" for table in IDS for task in run.task_names}
    assert {t.name for t in plan.tables} == copies
    assert sum(r.ddr_bytes for r in plan.ranks) > 3e11


def test_a_table_that_fits_nowhere_is_named_with_what_it_needs() -> None:
    run = config("cpu", rows={"user": 200_000_000})
    found = solve(run, Cluster(1, 2, "cpu", None, 8.0))
    assert isinstance(found, Shortage)
    (table,) = found.too_large
    assert (table.table, table.sharding, table.hbm_bytes) == ("user", ("table_wise",), None)
    assert table.ddr_bytes == 200_000_000 * 36 + 64 * 8 + 64 * 8 * 4
    assert found.ddr_available == 4 * GIB < table.ddr_bytes
    assert found.largest[0] == ("user", 200_000_000 * 36)


def test_what_exceeds_all_memory_needs_no_planner() -> None:
    found = solve(config("cpu", rows={"user": 2_000_000_000}), Cluster(1, 2, "cpu", None, 8.0))
    assert isinstance(found, Shortage)
    assert (found.seconds, found.capacity) == (0.0, 8 * GIB)
    assert found.needed_bytes == (2_000_000_000 + 60 + 64) * 36
    assert [t.table for t in explained(found, config("cpu", rows={"user": 2_000_000_000})).too_large] == ["user"]


def test_ranks_that_cannot_share_the_batch_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch of 64 cannot be shared by 6 ranks .* take data.batch_size=66"):
        solve(config(), Cluster(3, 2, "cuda", 16.0, 64.0))


def test_a_config_that_no_run_takes_has_no_plan() -> None:
    with pytest.raises(ValueError, match="use exact: rows"):
        solve(config(gradient={"type": "gradnorm", "exact": "dense"}), GPUS)


def _trained_plan(raw_run: dict[str, Any]) -> dict[str, Any]:
    """Runs in a rank: the plan that training makes there."""
    run = parse(raw_run)
    sharded = shard(build_model(run, {}), run, torch.device("cpu"))
    return {
        name: (table.sharding_type, table.compute_kernel, [_part(s) for s in table.sharding_spec.shards])
        for module in sharded.plan.plan.values()
        for name, table in module.items()
    }


def _part(shard: Any) -> tuple[int, int, int]:
    return (shard.placement.rank(), *shard.shard_sizes)


@pytest.mark.distributed
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_plan_is_the_one_that_training_makes(ranks: int) -> None:
    made = raw("cpu", rows={"user": 5000, "item": 900})
    made["features"]["tables"][2] |= {"dim": 256, "sharding": ["column_wise"]}
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    plan = planned(parse(made), Cluster(1, ranks, "cpu", None, host))
    ours = {t.name: (t.sharding, t.kernel, [(s.rank, s.rows, s.columns) for s in t.shards]) for t in plan.tables}
    assert run_ranks(_trained_plan, ranks, made) == [ours] * ranks
    assert len({s.rank for t in plan.tables for s in t.shards}) == ranks


def of_user(**table: Any) -> TablePlan:
    made = raw(rows={"user": 10_000_000}, train=table.pop("train", {}))
    made["features"]["tables"][0] |= table
    return next(t for t in planned(parse(made), GPUS).tables if t.name == "user")


def bytes_of(table: TablePlan) -> tuple[int, int]:
    """Of GPUs and of hosts."""
    return sum(s.hbm_bytes for s in table.shards), sum(s.ddr_bytes for s in table.shards)


def test_a_kernel_puts_a_table_into_host_memory_and_a_share_of_it_on_the_gpu() -> None:
    fused, uvm = bytes_of(of_user()), bytes_of(of_user(kernel="fused_uvm"))
    caches = [bytes_of(of_user(kernel="fused_uvm_caching", cache_load_factor=f)) for f in (0.1, 0.2, 0.4)]
    default = bytes_of(of_user(kernel="fused_uvm_caching"))
    table = 10_000_000 * 9 * 4
    assert fused[0] > table
    assert fused[1] == 0
    assert {ddr for _, ddr in (uvm, *caches)} == {table}
    assert uvm[0] < caches[0][0] < caches[1][0] < caches[2][0] < fused[0]
    assert default == caches[1]


def test_rows_of_fp16_take_half_and_what_is_looked_up_does_not() -> None:
    wide, narrow = (of_user(dtype=dtype) for dtype in ("fp32", "fp16"))
    ids = 8 * sum(s.lookups for s in wide.shards)
    vectors = sum(64 * s.columns * 4 for s in wide.shards)
    assert wide.sharding == narrow.sharding
    assert bytes_of(wide)[0] - ids - vectors == 2 * (bytes_of(narrow)[0] - ids - vectors)


def test_what_is_exchanged_in_16_bits_takes_less_time() -> None:
    wide, narrow = (
        max(r.cost.comms for r in planned(config(rows={"user": 10_000_000}, train={"comms": comms}), GPUS).ranks)
        for comms in ("fp32", "bf16")
    )
    assert narrow == pytest.approx(wide / 2, rel=0.3)
    assert narrow < wide


def test_a_cache_filled_ahead_is_faster_and_takes_more() -> None:
    cache = {"kernel": "fused_uvm_caching", "cache_load_factor": 0.1}
    plain, ahead = of_user(**cache), of_user(**cache, train={"pipeline": "prefetch_sparse_dist"})
    assert sum(s.cost.fwd_compute for s in ahead.shards) < sum(s.cost.fwd_compute for s in plain.shards)
    assert bytes_of(ahead)[0] > bytes_of(plain)[0]
