"""How the estimate moves with the number of nodes, the global batch staying as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.planning.report import Growth
from torchrec_mtl.planning.result import Cluster, Plan
from torchrec_mtl.planning.solve import solve
from torchrec_mtl.planning.words import why


def grow(
    config: RunConfig, cluster: Cluster, nodes: Sequence[int], known: Plan | None, say: Callable[[str], None]
) -> tuple[Growth, ...]:
    """Plan for each number of nodes.

    Args:
        config: the run.
        cluster: GPUs and memory of a node.
        nodes: numbers to plan for.
        known: a plan of ``config``, not to be made twice.
        say: told what is planned next.
    """
    found = []
    for count in nodes:
        size = replace(cluster, nodes=count)
        if known is not None and known.cluster == size:
            found.append(_of_plan(known))
            continue
        say(f"planning for {size}")
        found.append(_one(config, size))
    return tuple(found)


def _one(config: RunConfig, cluster: Cluster) -> Growth:
    batch = config.data.batch_size // cluster.ranks
    try:
        found = solve(config, cluster)
    except ValueError as error:
        return Growth(cluster.nodes, cluster.ranks, batch, str(error))
    if isinstance(found, Plan):
        return _of_plan(found)
    return Growth(cluster.nodes, cluster.ranks, batch, why(found), seconds=found.seconds)


def _of_plan(plan: Plan) -> Growth:
    slowest = max(plan.ranks, key=lambda r: r.cost.total).cost
    return Growth(
        nodes=plan.cluster.nodes,
        ranks=plan.cluster.ranks,
        batch_per_rank=plan.batch_per_rank,
        step_ms=slowest.total,
        compute_ms=slowest.compute,
        comms_ms=slowest.comms,
        hbm_bytes=max(r.hbm_bytes for r in plan.ranks),
        ddr_bytes=max(r.ddr_bytes for r in plan.ranks),
        seconds=plan.seconds,
    )
