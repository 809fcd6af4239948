"""Kills ranks at random moments and compares what comes out with runs that nobody disturbed.

    python benchmarks/faults.py --kills 105 --out runs/faults

For every built-in head, two ranks under torchrun train a small run (Adam, row-wise Adagrad, batch norm, checkpoints and
evaluations in and between epochs, several phases where the head has them): once undisturbed, and then while ``kill -9``
hits one of the ranks, or both. A quarter of the kills fall evenly on the time before the first batch; the others up to
30 ms after an event drawn evenly from those that the run still has ahead: a batch, a checkpoint, an evaluation, a
phase, the end. torchrun starts the ranks again. At the end every tensor of the latest and the best checkpoint, random
states included, the position, the log of losses and evaluations, and the final metrics must be equal bit for bit, and
the sequence of batches that led to the final state must be that of the undisturbed run: none lost, none repeated.

Results are appended to ``OUT/faults.jsonl``; the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.faults_heads import RUNS, config, write_data
from benchmarks.faults_job import RANKS, Job
from benchmarks.faults_outcome import Batches, compare, effective_batches, progress, seconds_of_attempts
from torchrec_mtl.bench.machine import machine, versions

_OF_START = 0.25
_JITTER_S = 0.03


@dataclass(frozen=True)
class Outcome:
    """What came of the kills of one head.

    Attributes:
        head: name of its run.
        save: how it saves.
        kills: how many hit a living rank.
        at: what the killed ranks were at, and how often.
        recovered: the run came to its end.
        differences: what is not equal; empty where all is.
        steps: of the run.
        wrong_batches: places in the sequence of batches that are not those of the undisturbed run.
        again: batches trained once more after a restart, of both ranks.
        seconds: of the run with kills.
        undisturbed_s: of the other.
        restart_s: seconds from a kill to the first batch after it, median.
    """

    head: str
    save: str
    kills: int
    at: dict[str, int]
    recovered: bool
    differences: list[str]
    steps: int
    wrong_batches: int
    again: int
    seconds: float
    undisturbed_s: float
    restart_s: float


@dataclass(frozen=True)
class Whole:
    """A run that nobody disturbed.

    Attributes:
        run_dir: where it lies.
        batches: that it trained on.
        seconds: it took, with start and end.
        start_s: seconds of them before the first batch.
        events: lines that one rank traced.
    """

    run_dir: Path
    batches: Batches
    seconds: float
    start_s: float
    events: int

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return len(self.batches.sequence)


def kill(job: Job, kills: int, whole: Whole, rng: random.Random) -> tuple[Counter[str], list[float]]:
    """Kill ranks up to ``kills`` times; see the top of this file for when.

    Returns:
        What the killed were at, and when they were killed.
    """
    at: Counter[str] = Counter()
    times: list[float] = []
    killed = 0  # attempts by then
    while len(times) < kills and _wait(job, whole, killed, rng):
        living = job.ranks()
        chosen = living if rng.random() < 0.2 else [rng.choice(living)] if living else []
        hit = [pid for pid in chosen if _killed(pid)]
        if hit:
            times.append(time.time())
            at[job.doing(hit[0])] += 1
            killed = job.attempts()
    return at, times


def _wait(job: Job, whole: Whole, killed: int, rng: random.Random) -> bool:
    """Wait for a moment drawn at random after a restart; return whether the job still runs."""
    while job.process.poll() is None and job.attempts() == killed:
        time.sleep(0.01)
    if rng.random() < _OF_START:
        time.sleep(rng.uniform(0, whole.start_s))
        return job.process.poll() is None
    done, _ = progress(job.traces)
    left = round(whole.events * (1 - done / whole.steps))
    target = rng.randint(0, max(left, 1))
    while job.process.poll() is None and job.events() < target:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, _JITTER_S))
    return job.process.poll() is None


def _killed(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def disturb(name: str, out: Path, kills: int, seed: int) -> list[Outcome]:
    """Train a head undisturbed, and with kills until there were as many; compare."""
    rng = random.Random(f"{seed} {name}")
    save = rng.choice(["wait", "background"])
    folder = out / name.replace(" ", "_")
    job = Job(config(name, out / "data", folder / "whole" / "run", save=save), folder / "whole", restarts=0)
    ended, seconds = job.end()
    if not ended:
        raise RuntimeError(f"{name}: the undisturbed run failed, see {folder / 'whole' / 'output.txt'}")
    batches, start_s = effective_batches(job.traces, RANKS), progress(job.traces)[1]
    whole = Whole(folder / "whole" / "run", batches, seconds, start_s, job.events())
    outcomes: list[Outcome] = []
    while (left := kills - sum(o.kills for o in outcomes)) > 0:
        place = folder / f"killed{len(outcomes)}"
        job = Job(config(name, out / "data", place / "run", save=save), place, restarts=10 * kills)
        at, times = kill(job, left, whole, rng)
        recovered, seconds = job.end()
        batches = effective_batches(job.traces, RANKS)
        outcomes.append(
            Outcome(
                head=name,
                save=save,
                kills=len(times),
                at=dict(at),
                recovered=recovered,
                differences=compare(whole.run_dir, place / "run") if recovered else ["it never ended"],
                steps=whole.steps,
                wrong_batches=whole.batches.differences(batches),
                again=batches.again,
                seconds=seconds,
                undisturbed_s=whole.seconds,
                restart_s=seconds_of_attempts(job.traces, times),
            )
        )
        if not recovered:
            break
    if not any(o.differences for o in outcomes):
        shutil.rmtree(folder)
    return outcomes


def show(outcomes: Sequence[Outcome]) -> str:
    """Return the table, and the sums, as Markdown."""
    lines = ["| run | saved | kills | recovered | states equal | steps | batches lost or repeated | trained again |"]
    lines.append("| --- | --- | ---: | --- | --- | ---: | ---: | ---: |")
    for o in _by_head(outcomes):
        equal = "yes" if not o.differences else f"NO: {o.differences[0]}"
        words = (o.head, o.save, o.kills, "yes" if o.recovered else "NO", equal, o.steps, o.wrong_batches, o.again)
        lines.append("| " + " | ".join(map(str, words)) + " |")
    at: Counter[str] = Counter()
    for o in outcomes:
        at.update(o.at)
    kills = sum(o.kills for o in outcomes)
    lost = sum(o.seconds - o.undisturbed_s for o in outcomes) / max(kills, 1)
    restart = sorted(o.restart_s for o in outcomes)[len(outcomes) // 2]
    lines += [
        "",
        f"{kills} kills in {len(outcomes)} runs: {sum(o.recovered for o in outcomes)} recovered, "
        f"{sum(not o.differences for o in outcomes)} with equal states, "
        f"{sum(o.wrong_batches for o in outcomes)} batches lost or repeated.",
        f"Seconds lost a kill: {lost:.1f} (of them {restart:.1f} from the kill to the next batch, median).",
        "Killed while: " + ", ".join(f"{doing} {count}" for doing, count in at.most_common()) + ".",
    ]
    return "\n".join(lines)


def _by_head(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return one outcome a head: of its runs together."""
    merged: dict[str, Outcome] = {}
    for o in outcomes:
        if (a := merged.get(o.head)) is None:
            merged[o.head] = o
            continue
        merged[o.head] = replace(
            a,
            kills=a.kills + o.kills,
            recovered=a.recovered and o.recovered,
            differences=a.differences + o.differences,
            wrong_batches=a.wrong_batches + o.wrong_batches,
            again=a.again + o.again,
        )
    return list(merged.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=105, help="in all, shared evenly by the heads")
    parser.add_argument("--heads", nargs="*", choices=list(RUNS), default=list(RUNS), help="by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=Path("runs/faults"))
    args = parser.parse_args()
    write_data(args.out / "data")
    log = args.out / "faults.jsonl"
    known = [Outcome(**json.loads(line)) for line in log.read_text().splitlines()] if log.is_file() else []
    done = {name: [o for o in known if o.head == name] for name in args.heads}
    each = -(-args.kills // len(args.heads))
    for name in args.heads:
        if not done[name]:
            done[name] = disturb(name, args.out.absolute(), each, args.seed)
            with log.open("a") as file:
                file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in done[name])
        for o in done[name]:
            sys.stderr.write(f"{name}: {o.kills} kills, differences {o.differences}\n")
    outcomes = [o for name in args.heads for o in done[name]]
    print(f"machine: {machine()}; versions: {versions()}; seed {args.seed}; {RANKS} ranks, one thread each\n")
    print(show(outcomes))
    if any(o.differences or o.wrong_batches or not o.recovered for o in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
