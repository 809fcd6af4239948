r"""This library beside its peers on the same job: MMoE, PLE, ESMM, shared bottom; speed, memory, AUC, start.

    python benchmarks/peers.py setup [--peers rechub deepctr fuxictr nextrec]
    python benchmarks/peers.py run [--models mmoe ple esmm shared_bottom] [--sizes small large]
        [--data generated cdnow kuairand] [--peers ...] [--repeats 5] [--out runs/peers.jsonl]
    python benchmarks/peers.py show [--out runs/peers.jsonl]

`setup` makes an environment for each peer under .venv-peers; PIP_ARGS is handed to pip, as by the Makefile. `run`
writes the data once as Parquet, starts each contender as a process of its own, one after the other, and appends a line
for each to --out; what is there is not repeated, so interrupt at will. `show` prints Markdown.

Ours runs whole: reader, checks, metrics, log, TensorBoard, checkpoint. Each peer trains and evaluates with its own
loader and loop (`peer_runners/run_NAME.py`); what is not alike is said under each table. Each process is kept on
--cores cores (1): with more, contenders that read ahead in a thread, as ours does, use a second one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks are scripts beside the package, not installed

from benchmarks.peer_runners import environments, figures, plan, processes, tables  # noqa: E402
from benchmarks.peer_runners.spec import MODELS, Spec  # noqa: E402

TABLE_ROWS = {"small": 9_600, "large": 190_000}  # of each of the 20 tables: 192 k and 3.8 M in all
GENERATED = "generated"


def set_up(peers: Sequence[str]) -> int:
    """Make the environments; return how many cannot be had."""
    failed = 0
    for name in peers:
        print(f"{name}: setting up (minutes, the first time)", flush=True)
        why = environments.set_up(environments.PEERS[name])
        print(f"{name}: {'ready' if why is None else f'does not install: {why}'}", flush=True)
        failed += why is not None
    return failed


def write_data(name: str, options: argparse.Namespace) -> Path:
    """Return the folder of a data set, written where it is missing."""
    words: list[str] = []
    folder: Path = options.folder / name
    if name in TABLE_ROWS:
        rows = options.small_rows if name == "small" else options.large_rows
        sizes = {"seed": options.seed, "rows": rows, "test-rows": options.test_rows, "table-rows": TABLE_ROWS[name]}
        words = [word for option, value in sizes.items() for word in (f"--{option}", str(value))]
        folder = options.folder / "-".join([name, *map(str, sizes.values())])
    if not (folder / "columns.json").is_file():
        command = [sys.executable, "-m", "benchmarks.peer_runners.write_data", name, str(folder), *words]
        subprocess.run(command, cwd=ROOT, env=environments.environment(), check=True)
    return folder


def measure(options: argparse.Namespace) -> None:
    """Run what is not done yet, and append each result."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])  # inherited by each process
    names = [n for kind in options.data for n in (options.sizes if kind == GENERATED else [kind])]
    folders = {name: write_data(name, options) for name in names}
    columns = {name: json.loads((folder / "columns.json").read_text()) for name, folder in folders.items()}
    contenders = [environments.OURS, *options.peers]
    versions = {name: environments.versions(name) for name in contenders}
    done = {plan.key(r) for r in plan.load(options.out) if "error" not in r}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    changes = {"epochs": options.epochs, "batch_size": options.batch_size, "table_lr": options.table_lr}
    for run in plan.plan(contenders, names, options.models, options.repeats, dict(options.fewer)):
        with tempfile.TemporaryDirectory() as scratch:
            spec = plan.make_spec(run, folders[run.data], columns[run.data], changes, scratch)
            record = _record(run, spec, versions[run.contender], options)
            if plan.key(record) in done:
                continue
            why = _why_not(run)
            record |= {"error": why} if why else processes.start(run.contender, spec, timeout=options.timeout)
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(_line(record), flush=True)


def _record(run: plan.Run, spec: Spec, versions: Mapping[str, str], options: argparse.Namespace) -> plan.Record:
    """Return what is known of a run before it starts."""
    named = {"contender": run.contender, "model": run.model, "data": run.data, "repeat": run.repeat}
    settings: dict[str, Any] = {
        "train_rows": _num_rows(spec.train),
        "test_rows": _num_rows(spec.test),
        "columns": len(spec.sparse),
        "table_rows": sum(spec.sparse.values()),
        "dense": len(spec.dense),
        "dim": spec.dim,
        "epochs": spec.epochs,
        "batch_size": spec.batch_size,
        "table_lr": spec.table_lr,
    }
    machine = f"{_processor()}, {os.cpu_count()} cores, {platform.platform()}, Python {platform.python_version()}"
    return {
        **named,
        "versions": dict(versions),
        "spec": spec.digest(),
        "cores": options.cores,
        "settings": settings,
        "machine": machine,
    }


def _why_not(run: plan.Run) -> str | None:
    """Return why a run cannot be, or None."""
    peer = environments.PEERS.get(run.contender)
    if peer is not None and peer.lacks and run.model in peer.lacks:
        return peer.lacks[run.model]
    return environments.missing(run.contender)


def _line(record: plan.Record) -> str:
    named = f"repeat {record['repeat']} {record['data']} {record['model']} {record['contender']}"
    if "error" in record:
        return f"{named}: {record['error']}"
    return f"{named}: training {figures.training_rate(record):,.0f} samples/s, {record['peak_mib']:,.0f} MiB"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _num_rows(path: str) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _fewer(text: str) -> tuple[str, int]:
    name, _, count = text.partition(":")
    if name not in environments.PEERS or not count.isdigit() or int(count) < 1:
        raise argparse.ArgumentTypeError(
            f"found {text!r}; write PEER:REPEATS, such as nextrec:2, with a peer of {', '.join(environments.PEERS)}"
        )
    return name, int(count)


def _parser() -> argparse.ArgumentParser:
    names = list(environments.PEERS)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    setup = commands.add_parser("setup", help="make the peers' environments")
    run = commands.add_parser("run", help="measure")
    show = commands.add_parser("show", help="print the tables")
    for command in (setup, run):
        command.add_argument("--peers", nargs="+", choices=names, default=names)
    for command in (run, show):
        command.add_argument("--out", type=Path, default=Path("runs/peers.jsonl"), help="JSON lines [%(default)s]")
    run.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    run.add_argument("--sizes", nargs="+", choices=list(TABLE_ROWS), default=list(TABLE_ROWS), help="of generated data")
    run.add_argument("--data", nargs="+", choices=[GENERATED, "cdnow", "kuairand"], default=[GENERATED])
    run.add_argument("--repeats", type=int, default=5)
    run.add_argument("--fewer", type=_fewer, nargs="*", default=[("nextrec", 2)], help="PEER:REPEATS [nextrec:2]")
    run.add_argument("--small-rows", type=int, default=150_000, help="rows to train on [%(default)s]")
    run.add_argument("--large-rows", type=int, default=40_000, help="rows to train on [%(default)s]")
    run.add_argument("--test-rows", type=int, default=50_000)
    run.add_argument("--epochs", type=int, default=1)
    run.add_argument("--batch-size", type=int, default=2048)
    run.add_argument("--table-lr", type=float, default=0.1, help="of our row-wise Adagrad [%(default)s]")
    run.add_argument("--seed", type=int, default=0, help="of the generated data")
    run.add_argument("--cores", type=int, default=1, help="that each process may use [%(default)s]")
    run.add_argument("--timeout", type=float, default=900.0, help="seconds of one process")
    run.add_argument("--folder", type=Path, default=ROOT / "data" / "peers", help="of the Parquet files")
    return parser


def main() -> int:
    """Run the command."""
    options = _parser().parse_args()
    if options.command == "setup":
        return 1 if set_up(options.peers) else 0
    if options.command == "run":
        measure(options)
        return 0
    print(tables.report(plan.load(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
