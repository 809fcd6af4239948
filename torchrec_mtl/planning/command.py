"""`torchrec-mtl plan`: its options checked, the planning in order, and what it found."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from torchrec_mtl.config.load import load_config
from torchrec_mtl.config.names import did_you_mean
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.planning.fit import Mended, mend
from torchrec_mtl.planning.growth import grow
from torchrec_mtl.planning.report import Report
from torchrec_mtl.planning.result import DEFAULT_DDR_GIB, Cluster, Plan, Shortage
from torchrec_mtl.planning.solve import explained, solve
from torchrec_mtl.planning.words import gib
from torchrec_mtl.training.sharding import RESERVED

_DEVICES = ("cuda", "cpu")


def read_cluster(
    *, nodes: int, gpus: int, device: str, hbm_gib: float | None = None, ddr_gib: float | None = None
) -> Cluster:
    """Check the options that describe the machines.

    Args:
        nodes: number of machines.
        gpus: GPUs of each; on the CPU its ranks.
        device: "cuda" or "cpu".
        hbm_gib: memory of one GPU; for "cuda" alone.
        ddr_gib: host memory of a node; None: 128 GiB a rank, as TorchRec assumes.

    Raises:
        ValueError: an option makes no sense, with what was found and what to do.
    """
    if device not in _DEVICES:
        hint = did_you_mean(device, _DEVICES)
        raise ValueError(f"--device: expected {' or '.join(_DEVICES)} (found '{device}').{hint}")
    if nodes < 1:
        raise ValueError(f"--nodes: expected 1 or more machines (found {nodes})")
    if gpus < 1:
        raise ValueError(f"--gpus: expected 1 or more GPUs a node, or ranks a node on the CPU (found {gpus})")
    if device == "cpu" and hbm_gib is not None:
        raise ValueError(f"--hbm-gib: the CPU has none (found {hbm_gib:g}); leave it out, or set --device cuda")
    if device == "cuda" and hbm_gib is None:
        raise ValueError("--hbm-gib: is missing; give the memory of one GPU in GiB, such as --hbm-gib 80")
    if hbm_gib is not None and not (hbm_gib > 0 and math.isfinite(hbm_gib)):
        raise ValueError(f"--hbm-gib: expected more than 0 GiB (found {hbm_gib:g}); an A100 or H100 has 80")
    lowest = "0 or more" if device == "cuda" else "more than 0"
    if ddr_gib is not None and not (math.isfinite(ddr_gib) and (ddr_gib > 0 or (ddr_gib == 0 and device == "cuda"))):
        raise ValueError(f"--ddr-gib: expected {lowest} GiB of host memory a node (found {ddr_gib:g})")
    return Cluster(nodes, gpus, device, hbm_gib, gpus * DEFAULT_DDR_GIB if ddr_gib is None else ddr_gib)


def read_growth(text: str | None) -> tuple[int, ...]:
    """Return the numbers of nodes in ``--growth``, in order.

    Raises:
        ValueError: it is no list of numbers.

    Example:
        >>> read_growth("4,1 2"), read_growth(None)
        ((1, 2, 4), ())
    """
    words = [word for word in re.split(r"[,\s]+", text or "") if word]
    if not all(word.isdecimal() and int(word) for word in words) or (text is not None and not words):
        raise ValueError(f"--growth: expected numbers of nodes, such as 1,2,4,8 (found '{text}')")
    return tuple(sorted({int(word) for word in words}))


def check_files(json_file: str | None, plot: Path | None) -> None:
    """Refuse, before anything is planned, files that cannot be written.

    Raises:
        ValueError: a folder is missing, or matplotlib.
    """
    for option, name in (("--json", None if json_file == "-" else json_file), ("--plot", plot)):
        if name is not None and not Path(name).parent.is_dir():
            raise ValueError(f"{option}: there is no folder {Path(name).parent}; make it, or name another file")
    if plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError('--plot: matplotlib is missing; run: pip install "torchrec_mtl[bench]"')


def make_report(
    config: Path,
    overrides: Sequence[str],
    cluster: Cluster,
    *,
    growth: Sequence[int] = (),
    changes: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Plan a config for a cluster; where nothing fits, look for the cheapest change.

    Args:
        config: the YAML file.
        overrides: ``key.path=value``.
        cluster: from `read_cluster`.
        growth: numbers of nodes to plan for, too.
        changes: whether to look for changes.
        say: told what is planned next.

    Raises:
        ValueError: the config is wrong, or its batch cannot be shared by the ranks.
    """
    for override in overrides:
        if override.partition("=")[0] == "train.device":
            raise ValueError(f"{override}: --device says what the plan is for; leave it out")
    # Whatever this machine has: a config for a GPU is planned on a laptop.
    run = load_config(config, [*overrides, f"train.device={cluster.device}"])
    say(f"planning for {cluster}")
    found = solve(run, cluster)
    plan = found if isinstance(found, Plan) else None
    shortage = explained(found, run) if isinstance(found, Shortage) else None
    mended = mend(run, shortage, say) if shortage is not None and changes else Mended((), None, run)
    return Report(
        config=str(config),
        batch_size=run.data.batch_size,
        cluster=cluster,
        plan=plan,
        shortage=shortage,
        attempts=mended.attempts,
        changed=mended.plan,
        growth=grow(mended.config, mended.plan.cluster if mended.plan else cluster, growth, plan or mended.plan, say),
        notes=_notes(mended.config, plan or mended.plan),
    )


def _notes(config: RunConfig, plan: Plan | None) -> tuple[str, ...]:
    """Return what to know before training by this plan."""
    if plan is None:
        return ()
    notes = []
    ranks, streams = plan.cluster.ranks, config.data.streams
    if streams % ranks:
        notes.append(f"{ranks} ranks do not divide data.streams = {streams}; train with data.streams={ranks}")
    hbm = plan.cluster.hbm_bytes
    if hbm is not None and plan.dense_bytes > RESERVED * hbm:
        notes.append(
            f"the dense part alone takes {gib(plan.dense_bytes)} of each GPU; training keeps {gib(RESERVED * hbm)} "
            "free of tables for it and for the step"
        )
    if config.optim.sparse.type in {"adagrad", "adam"} and any(t.dtype == "fp16" for t in config.features.tables):
        notes.append(
            f"TorchRec reckons with {config.optim.sparse.type}'s state in fp16 where tables are, and it is fp32: these "
            "take more memory than shown"
        )
    return tuple(notes)
