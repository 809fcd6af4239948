"""What could make a run fit, cheapest first; each change as overrides of the config or options of the command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torchrec_mtl.config.features import TableConfig
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.planning.result import DEFAULT_DDR_GIB, Cluster, Shortage
from torchrec_mtl.planning.sizes import copies, needed_bytes, table_bytes

_COLUMN = 128  # TorchRec cuts no narrower columns by itself
_MOST_NODES = 64
_SMALL_CACHE = 0.05
_INDEX = 4  # bytes of the GPU a row that tell whether it is in the cache


@dataclass(frozen=True)
class Change:
    """One change to try.

    Attributes:
        what: in words.
        overrides: ``key.path=value`` of the config.
        cluster: to plan for; None: the same.
        options: of the command, as typed, where the cluster changes.
    """

    what: str
    overrides: tuple[str, ...] = ()
    cluster: Cluster | None = None
    options: tuple[str, ...] = ()


def changes(config: RunConfig, shortage: Shortage) -> Iterator[Change]:
    """Yield what to try, in order of what it costs: nothing, host memory, precision, width, machines.

    Sharding types and kernels cost no more than their owner's wish: once they are not enough, they stay allowed beside
    every further change.
    """
    freed: list[Change] = []
    for change in (*_sharding(config), *_kernels(config)):
        freed.append(_beside(freed[-1], change) if freed else change)
    yield from freed
    for change in _costly(config, shortage):
        yield _beside(freed[-1], change) if freed else change


def _costly(config: RunConfig, shortage: Shortage) -> Iterator[Change]:
    columns = list(_columns(config, shortage))
    yield from columns
    yield from _caching(config, shortage)
    yield from _host_memory(shortage.cluster)
    yield from _halves(config, shortage)
    yield from _dims(config, shortage)
    for change in _nodes(shortage.cluster):
        # A table that lies whole on one rank gains nothing from more of them.
        yield _beside(columns[0], change) if columns else change


def _sharding(config: RunConfig) -> Iterator[Change]:
    bound = [t.name for t in config.features.tables if t.sharding is not None]
    if bound:
        what = f"all sharding types of the device for {_names(bound)}, where 'sharding' forbids some"
        yield Change(what, tuple(f"features.tables.{name}.sharding=null" for name in bound))


def _kernels(config: RunConfig) -> Iterator[Change]:
    bound = [t.name for t in config.features.tables if t.kernel == "fused"]
    if bound:
        what = f"host memory allowed for {_names(bound)}, where 'kernel' forbids it"
        yield Change(what, tuple(f"features.tables.{name}.kernel=auto" for name in bound))


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


def _caching(config: RunConfig, shortage: Shortage) -> Iterator[Change]:
    """Put as few tables as the sizes ask for into host memory, with a smaller cache than TorchRec's own of 0.2."""
    ranks, optimizer = shortage.cluster.ranks, config.optim.sparse.type
    host, gpus = ranks * shortage.ddr_available, ranks * shortage.hbm_available
    if not gpus:
        return
    whole = copies(config)
    moved: list[TableConfig] = []
    inside, outside, index = needed_bytes(config), 0, 0
    for table in _largest_first(config, config.features.tables):
        size = whole * table_bytes(table, optimizer)
        inside, outside, index = inside - size, outside + size, index + whole * table.rows * _INDEX
        moved.append(table)
        if inside + index + _SMALL_CACHE * outside <= gpus and _forced(shortage) <= {t.name for t in moved}:
            break
    else:
        return
    if outside > host:
        return
    overrides = []
    for table in moved:
        if table.kernel != "fused_uvm_caching":
            overrides.append(f"features.tables.{table.name}.kernel=fused_uvm_caching")
        overrides.append(f"features.tables.{table.name}.cache_load_factor={_SMALL_CACHE:g}")
    what = f"{_names([t.name for t in moved])} in host memory, with {_SMALL_CACHE:.0%} of the rows cached on the GPU"
    yield Change(what, tuple(overrides))


def _halves(config: RunConfig, shortage: Shortage) -> Iterator[Change]:
    """Store as few tables as the sizes ask for with 2 bytes a number, then all."""
    alone = [[t] for t in _largest_first(config, config.features.tables) if t.dtype != "fp16"]
    for tables in _fewest(config, shortage, alone, lambda table: table.model_copy(update={"dtype": "fp16"})):
        names = [t.name for t in tables]
        what = f"2 bytes a number in place of 4 (fp16) for {_names(names)}"
        yield Change(what, tuple(f"features.tables.{name}.dtype=fp16" for name in names))


def _dims(config: RunConfig, shortage: Shortage) -> Iterator[Change]:
    """Halve the width of as few tables as the sizes ask for, then of all, then again."""
    groups = _groups(config)
    halved = _fewest(config, shortage, groups, lambda table: table.model_copy(update={"dim": _narrow(table, 2)}))
    for tables, factor in (*((tables, 2) for tables in halved), (list(config.features.tables), 4)):
        narrower = [t for t in tables if _narrow(t, factor) < t.dim]
        if narrower and (factor == 2 or any(_narrow(t, 4) < _narrow(t, 2) for t in narrower)):
            share = "half" if factor == 2 else "a quarter of"
            overrides = tuple(f"features.tables.{t.name}.dim={_narrow(t, factor)}" for t in narrower)
            yield Change(f"{share} the dim of {_names([t.name for t in narrower])}", overrides)


def _fewest(
    config: RunConfig,
    shortage: Shortage,
    groups: Sequence[Sequence[TableConfig]],
    smaller: Callable[[TableConfig], TableConfig],
) -> Iterator[list[TableConfig]]:
    """Yield the tables of the fewest groups that could be enough when each becomes smaller; then of all, if more."""
    if not groups:
        return
    first = max((i + 1 for i, g in enumerate(groups) if _forced(shortage) & {t.name for t in g}), default=1)
    enough = first
    while enough < len(groups) and _needed(config, groups[:enough], smaller) > shortage.capacity:
        enough += 1
    for count in sorted({enough, len(groups)}):
        yield [t for group in groups[:count] for t in group]


def _forced(shortage: Shortage) -> set[str]:
    return {t.table.split("@")[0] for t in shortage.too_large}


def _groups(config: RunConfig) -> list[list[TableConfig]]:
    """Return the tables, largest first; those that sequences read must keep one width and go together."""
    features = config.features
    alone = [[t] for t in features.tables if t.name not in features.sequence_tables]
    together = [t for t in features.tables if t.name in features.sequence_tables]
    groups = [*alone, *([together] if together else [])]
    return sorted(groups, key=lambda g: -sum(table_bytes(t, config.optim.sparse.type) for t in g))


def _largest_first(config: RunConfig, tables: Sequence[TableConfig]) -> list[TableConfig]:
    return sorted(tables, key=lambda t: -table_bytes(t, config.optim.sparse.type))


def _needed(
    config: RunConfig, groups: Sequence[Sequence[TableConfig]], smaller: Callable[[TableConfig], TableConfig]
) -> int:
    chosen = {t.name for group in groups for t in group}
    tables = tuple(smaller(t) if t.name in chosen else t for t in config.features.tables)
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
