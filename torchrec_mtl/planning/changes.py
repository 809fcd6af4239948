"""What could make a run fit, cheapest first; each change as overrides of the config or options of the command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torchrec_mtl.config.features import TableConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.planning.result import DEFAULT_DDR_GIB, Cluster, Shortage
from torchrec_mtl.planning.sizes import needed_bytes, table_bytes

_COLUMN = 128  # TorchRec cuts no narrower columns by itself
_MOST_NODES = 64


@dataclass(frozen=True)
class Change:
    """One change to try.

    Attributes:
        what: in words.
        overrides: ``key.path=value`` of the config.
        cluster: to plan for; None: the same.
        options: of the command, as typed, where the cluster changes.
        half: tables of 2 bytes a number.
    """

    what: str
    overrides: tuple[str, ...] = ()
    cluster: Cluster | None = None
    options: tuple[str, ...] = ()
    half: bool = False

    @property
    def in_yaml(self) -> bool:
        """Whether a run can have it today."""
        return not self.half


def changes(config: RunConfig, shortage: Shortage) -> Iterator[Change]:
    """Yield what to try, in order of what it costs: nothing, host memory, precision, width, machines.

    Sharding types cost nothing: once they are not enough, they stay allowed beside every further change.
    """
    freed = list(_sharding(config))
    yield from freed
    for change in _costly(config, shortage):
        yield _beside(freed[0], change) if freed else change


def _costly(config: RunConfig, shortage: Shortage) -> Iterator[Change]:
    columns = list(_columns(config, shortage))
    yield from columns
    yield from _host_memory(shortage.cluster)
    yield Change("tables of 2 bytes a number (fp16) in place of 4; the YAML has no such option yet", half=True)
    yield from _dims(config, shortage)
    for change in _nodes(shortage.cluster):
        # A table that lies whole on one rank gains nothing from more of them.
        yield _beside(columns[0], change) if columns else change


def _sharding(config: RunConfig) -> Iterator[Change]:
    bound = [t.name for t in config.features.tables if t.sharding is not None]
    if bound:
        what = f"all sharding types of the device for {_names(bound)}, where 'sharding' forbids some"
        yield Change(what, tuple(f"features.tables.{name}.sharding=null" for name in bound))


def _beside(free: Change, change: Change) -> Change:
    taken = {override.partition("=")[0] for override in change.overrides}
    kept = tuple(override for override in free.overrides if override.partition("=")[0] not in taken)
    return replace(change, what=f"{change.what}, and {free.what}", overrides=(*kept, *change.overrides))


def _columns(config: RunConfig, shortage: Shortage) -> Iterator[Change]:
    """Cut wide tables into columns, on the CPU, which cannot cut rows and by default leaves tables whole."""
    if shortage.cluster.device != "cpu":
        return
    stuck = {t.table.split("@")[0]: t.sharding for t in shortage.too_large if "column_wise" not in t.sharding}
    wide = {t.name: stuck[t.name] for t in config.features.tables if t.name in stuck and t.dim > _COLUMN}
    if wide:
        what = f"columns as parts, for {_names(list(wide))}"
        if config.optim.sparse.type == "rowwise_adagrad":
            what += " (rowwise_adagrad then keeps one state a row and part: not quite the same optimizer)"
        yield Change(
            what,
            tuple(f"features.tables.{name}.sharding=[{', '.join((*t, 'column_wise'))}]" for name, t in wide.items()),
        )


def _host_memory(cluster: Cluster) -> Iterator[Change]:
    if cluster.device == "cpu":
        base = cluster.ddr_gib
        yield from (_more_host(cluster, base * factor, "host memory") for factor in (2, 4))
        return
    base = cluster.ddr_gib or cluster.gpus * DEFAULT_DDR_GIB / 2
    what = "host memory, where the planner puts large tables by itself (fused_uvm_caching, fused_uvm)"
    yield from (_more_host(cluster, base * factor, what) for factor in (2, 4))


def _more_host(cluster: Cluster, gib: float, what: str) -> Change:
    return Change(
        f"{gib:g} GiB a node of {what}", cluster=replace(cluster, ddr_gib=gib), options=(f"--ddr-gib {gib:g}",)
    )


def _dims(config: RunConfig, shortage: Shortage) -> Iterator[Change]:
    """Halve the width of as few tables as the sizes ask for, then of all, then again."""
    groups = _groups(config)
    forced = {t.table.split("@")[0] for t in shortage.too_large}
    first = max((i + 1 for i, g in enumerate(groups) if forced & {t.name for t in g}), default=1)
    enough = first
    while enough < len(groups) and _needed(config, groups[:enough], 2) > shortage.capacity:
        enough += 1
    tried: set[tuple[str, ...]] = set()
    for count, factor in ((enough, 2), (len(groups), 2), (len(groups), 4)):
        tables = [t for group in groups[:count] for t in group if _narrow(t, factor) < t.dim]
        overrides = tuple(f"features.tables.{t.name}.dim={_narrow(t, factor)}" for t in tables)
        if overrides and overrides not in tried:
            tried.add(overrides)
            share = "half" if factor == 2 else "a quarter of"
            yield Change(f"{share} the dim of {_names([t.name for t in tables])}", overrides)


def _groups(config: RunConfig) -> list[list[TableConfig]]:
    """Return the tables, largest first; those that sequences read must keep one width and go together."""
    features = config.features
    alone = [[t] for t in features.tables if t.name not in features.sequence_tables]
    together = [t for t in features.tables if t.name in features.sequence_tables]
    groups = [*alone, *([together] if together else [])]
    return sorted(groups, key=lambda g: -sum(table_bytes(t, config.optim.sparse.type) for t in g))


def _needed(config: RunConfig, groups: Sequence[Sequence[TableConfig]], factor: int) -> int:
    narrow = {t.name: _narrow(t, factor) for group in groups for t in group}
    tables = tuple(t.model_copy(update={"dim": narrow.get(t.name, t.dim)}) for t in config.features.tables)
    features = config.features.model_copy(update={"tables": tables})
    return needed_bytes(config.model_copy(update={"features": features}))


def _narrow(table: TableConfig, factor: int) -> int:
    return max(table.dim // factor // 4 * 4, 4)  # FBGEMM wants a multiple of 4


def _nodes(cluster: Cluster) -> Iterator[Change]:
    nodes = cluster.nodes
    while nodes * 2 <= max(_MOST_NODES, cluster.nodes * 2):
        nodes *= 2
        yield Change(f"{nodes} nodes", cluster=replace(cluster, nodes=nodes), options=(f"--nodes {nodes}",))


def _names(names: Sequence[str]) -> str:
    noun = "table" if len(names) == 1 else "tables"
    if len(names) <= 3:
        return f"{noun} {', '.join(names)}"
    return f"{noun} {', '.join(names[:2])} and {len(names) - 2} more"
