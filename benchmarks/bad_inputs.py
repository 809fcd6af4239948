"""Gives every command bad inputs of every kind, and counts what it got.

    python benchmarks/bad_inputs.py --each 20 --seed 0

Every try is a process of its own, forked from one that has imported the stack, with a good config, table, run, or index
of which something was spoilt. A row of the table is a kind of input, and its columns say what became of it:

* error: exit status 1 (2 for a wrong command line) with a message that names a file, a column, or a key of the config;
* accepted: the command did its work, because what was spoilt does not matter to it, or is masked as documented;
* and what must not be: a traceback; an error that names no place; success where something is wrong, or an error where
  nothing is; files left half-written; no end within two minutes; a process that died.

The same seed draws the same inputs. Those that must not be are written to ``--out`` and make the exit status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.bad_inputs_kinds import Try, all_tries
from benchmarks.bad_inputs_runs import snapshot
from benchmarks.bad_inputs_tries import VERDICTS, Workbench, call, judge, prepare, seeded

_LIMIT_S = 120.0
_FINE = frozenset({"error", "accepted"})
Counts = Mapping[tuple[str, str], Counter[str]]


def attempt(bench: Workbench, trial: Try, seed: int, number: int, scratch: Path) -> dict[str, object]:
    """Make one bad input, give it to the command in this process, and judge what came of it."""
    words, bad = trial.make(seeded(seed, trial.kind, trial.command, number), bench, scratch)
    before = snapshot(scratch)
    outcome = call(words, _LIMIT_S)
    after = snapshot(scratch)
    left = left_over(before, after) if outcome.status else []
    verdict = judge(outcome, bad, left)
    if any(path.endswith(".proof") for path in after):
        verdict = "crash"  # something foreign was run
    trace = "".join(traceback.format_exception(outcome.error)) if outcome.error is not None else ""
    found = {"kind": trial.kind, "command": trial.command, "number": number, "verdict": verdict, "what": bad.what}
    return found | {"words": [str(word) for word in words], "said": outcome.said[-3000:], "left": left, "trace": trace}


def left_over(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Return what a command that failed has written, but for a run that the same command can go on with."""
    new = [path for path in after if path not in before]
    begun = {path.partition("/checkpoints/step-")[0] for path in after if "/checkpoints/step-" in path}
    aside = "/checkpoints/damaged-"  # as documented
    return [p for p in new if ".partial" in p or (p.partition("/")[0] not in begun and aside not in p)]


def in_process(bench: Workbench, trial: Try, seed: int, number: int) -> dict[str, object]:
    """As `attempt`, in a process of its own, whatever becomes of that."""
    scratch = Path(tempfile.mkdtemp(dir=bench.folder))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        log = os.open(bench.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        try:
            found = attempt(bench, trial, seed, number, scratch)
        except BaseException:
            found = {"verdict": "crash", "trace": traceback.format_exc()}
        with os.fdopen(write, "wb") as pipe:
            pipe.write(json.dumps(found).encode())
        os._exit(0)
    os.close(write)
    found = _received(read, child)
    shutil.rmtree(scratch, ignore_errors=True)
    return {"kind": trial.kind, "command": trial.command, "number": number, **found}


def _received(read: int, child: int) -> dict[str, object]:
    content, open_ = b"", True
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while open_ and select.select([pipe], [], [], _LIMIT_S + 30)[0]:
            block = pipe.read(1 << 16)
            content, open_ = content + block, bool(block)
    if open_:
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if open_:
        return {"verdict": "hang"}
    return dict(json.loads(content)) if content else {"verdict": "crash", "trace": f"the process ended with {status}"}


def as_markdown(counts: Counts) -> str:
    """Return the table: a row a kind on a command, and a row of all."""
    lines = [f"| kind | command | tried | {' | '.join(VERDICTS)} |", "|" + " --- |" * (3 + len(VERDICTS))]
    total: Counter[str] = Counter()
    for (kind, command), found in counts.items():
        total += found
        lines.append(_row(kind, command, found))
    return "\n".join([*lines, _row("all", "all", total)])


def by_kind(counts: Counts) -> Counts:
    """Return the counts of all commands together."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for (kind, _), counter in counts.items():
        found.setdefault((kind, "all"), Counter()).update(counter)
    return found


def _row(kind: str, command: str, found: Counter[str]) -> str:
    numbers = [found.total(), *(found[verdict] for verdict in VERDICTS)]
    return f"| {kind} | {command} | {' | '.join(map(str, numbers))} |"


def chosen(kinds: Sequence[str], commands: Sequence[str]) -> list[Try]:
    """Return the tries of some kinds and commands; of all where none are named."""
    return [t for t in all_tries() if (not kinds or t.kind in kinds) and (not commands or t.command in commands)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=20, help="tries of each kind on each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", default=[], help="these kinds alone; may be repeated")
    parser.add_argument("--command", action="append", default=[], help="these commands alone; may be repeated")
    parser.add_argument("--brief", action="store_true", help="one row a kind, of all commands together")
    parser.add_argument("--out", type=Path, help="JSON lines of what must not be")
    options = parser.parse_args()
    counts: dict[tuple[str, str], Counter[str]] = {}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        bench = _in_child(Path(folder))
        for trial in chosen(options.kind, options.command):
            counter = counts.setdefault((trial.kind, trial.command), Counter())
            for number in range(options.each):
                result = in_process(bench, trial, options.seed, number)
                counter[str(result["verdict"])] += 1
                if result["verdict"] not in _FINE:
                    found.append(result)
                    if options.out is not None:
                        with options.out.open("a") as file:
                            file.write(json.dumps(result) + "\n")
                    print(f"{result['verdict']}: {trial.kind} {trial.command} {number}", file=sys.stderr, flush=True)
    print(as_markdown(by_kind(counts) if options.brief else counts))
    return bool(found)


def _in_child(folder: Path) -> Workbench:
    """Make good things, with all that commands import, but in a child: threads do not outlive a fork."""
    import torch

    from torchrec_mtl.bench import command, pairs, rows, suite, tuning  # noqa: F401
    from torchrec_mtl.checking import command as checking  # noqa: F401
    from torchrec_mtl.planning import solve  # noqa: F401
    from torchrec_mtl.training import corpus, inference, run, unshard  # noqa: F401

    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            prepare(folder)
            status = 0
        finally:
            os._exit(status)
    if os.waitpid(child, 0)[1]:
        raise SystemExit("the good inputs could not be made")
    return Workbench.at(folder)


if __name__ == "__main__":
    sys.exit(main())
