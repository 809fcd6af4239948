r"""What HTTP adds to a predictor's call: /score with one user and 500 candidates, on loopback.

    python -m benchmarks.serving_http BUNDLE [--candidates 500] [--calls 300] [--repeats 5] [--seconds 5]

The server is the command itself, in a process of its own; requests are made up from the columns of the bundle (drawn
with seed 0) and sent over one open connection. Calls of the predictor in this process, with the same values, take turns
with requests whose candidates come as columns and as rows: the overhead is the difference of their medians, and the aim
for it is 2 ms at p50. Then several clients at once, each a process: requests a second, and how long they took. They
share the machine with the server. ``benchmarks/serving.py RUN --http`` asks real rows, and beside the trainer's model.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from benchmarks.http_client import post
from benchmarks.measured import Aim, Figure, Spread, as_markdown
from torchrec_mtl.bench.machine import machine
from torchrec_mtl.serving.predictor import Predictor
from torchrec_mtl.serving.server.columns import ServedColumn, served_columns

_HISTORY = 30
_AIM = Aim("at most", 2.0, of="value")  # ms that HTTP adds at p50
_QUESTIONS = 16


@dataclass(frozen=True)
class Question:
    """One request, as values and as bodies.

    Attributes:
        user: a value a column of the user's side.
        candidates: [B] values a column of the other sides.
    """

    user: Mapping[str, Any]
    candidates: Mapping[str, list[Any]]

    def body(self, *, rows: bool) -> bytes:
        """Return the body, candidates as rows or as columns."""
        given: object = dict(self.candidates)
        if rows:
            given = [dict(zip(self.candidates, values)) for values in zip(*self.candidates.values())]
        return json.dumps({"user": dict(self.user), "candidates": given}).encode()


@dataclass(frozen=True)
class Latency:
    """Milliseconds of many calls.

    Example:
        >>> Latency.of([0.001] * 99 + [0.1]).p50
        1.0
    """

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """Summarise at least one call."""
        return cls(*(round(float(value), 3) for value in np.percentile(np.array(seconds) * 1000, [50, 95, 99])))


@dataclass(frozen=True)
class HttpFigures:
    """What was measured.

    Attributes:
        latency: way of asking -> milliseconds, of all repeats together.
        overhead: of HTTP over the predictor at p50, in milliseconds, by form of the body; a difference within each
            repeat.
        load: clients -> requests a second, and how long they took.
    """

    latency: dict[str, Latency]
    overhead: dict[str, Spread]
    load: dict[int, tuple[float, Latency]]

    def table(self) -> str:
        """Return all of it as Markdown."""
        lines = ["| | p50 ms | p95 ms | p99 ms |", "| --- | ---: | ---: | ---: |"]
        lines += [f"| {name} | {x.p50:.2f} | {x.p95:.2f} | {x.p99:.2f} |" for name, x in self.latency.items()]
        added = [Figure(name, spread, "ms", aim=_AIM) for name, spread in self.overhead.items()]
        lines += [as_markdown("Added to the predictor's call at p50", added)]
        lines += [
            "",
            "| clients, a process each | requests/s | p50 ms | p95 ms | p99 ms |",
            "| ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [
            f"| {clients} | {rate:.0f} | {x.p50:.2f} | {x.p95:.2f} | {x.p99:.2f} |"
            for clients, (rate, x) in self.load.items()
        ]
        return "\n".join(lines)


def measure_http(
    bundle: Path,
    *,
    candidates: int = 500,
    calls: int = 300,
    repeats: int = 5,
    seconds: float = 5.0,
    clients: tuple[int, ...] = (1, 2, 4, 8),
    options: tuple[str, ...] = (),
    questions: Sequence[Question] = (),
    beside: Mapping[str, Callable[[int], object]] | None = None,
) -> HttpFigures:
    """Measure a bundle.

    Args:
        bundle: folder of an export.
        candidates: of a request.
        calls: of each way of asking, a repeat.
        repeats: medians are compared within each.
        seconds: under load, for each number of clients.
        clients: that ask at once.
        options: further words of the command.
        questions: to ask; by default made up, with so many candidates.
        beside: further ways to answer these, timed in turn with the others: name -> a function of the number of a
            question, counted from 0.
    """
    predictor = Predictor.load(bundle)
    questions = questions or make_questions(predictor, candidates)
    with serving(bundle, *options) as (host, port):
        sides = {**(beside or {}), **_sides(predictor, questions, http.client.HTTPConnection(host, port))}
        _in_turn(sides, len(questions), len(questions))  # warm
        times: dict[str, list[list[float]]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, found in _in_turn(sides, calls, len(questions)).items():
                times[name].append(found)
        load = {n: _under_load(host, port, [q.body(rows=False) for q in questions], n, seconds) for n in clients}
    medians = {name: [float(np.median(found)) * 1000 for found in blocks] for name, blocks in times.items()}
    return HttpFigures(
        latency={name: Latency.of([x for block in blocks for x in block]) for name, blocks in times.items()},
        overhead={
            name: Spread.of([mine - base for mine, base in zip(medians[name], medians["predictor"])])
            for name in sides
            if name.startswith("HTTP")
        },
        load=load,
    )


def make_questions(predictor: Predictor, candidates: int) -> list[Question]:
    """Draw requests that a predictor answers."""
    rng = np.random.default_rng(0)
    columns = served_columns(predictor)
    user = [column for column in columns if "user" in column.sides]
    others = [column for column in columns if {*column.sides} - {"user"}]
    return [
        Question(
            {column.name: _draw(rng, column) for column in user},
            {column.name: [_draw(rng, column) for _ in range(candidates)] for column in others},
        )
        for _ in range(_QUESTIONS)
    ]


def _draw(rng: np.random.Generator, column: ServedColumn) -> Any:  # noqa: ANN401 - as JSON has it
    if column.kind == "number":
        return round(float(rng.normal()), 4)
    if column.kind in {"times", "moment"}:
        return [0] * _HISTORY if column.kind == "times" else 3600
    ids = rng.integers(column.rows or 1000, size=1 if column.kind == "id" else _HISTORY).tolist()
    named = [f"id{number}" for number in ids] if column.elements == "strings" else ids
    return named[0] if column.kind == "id" else named


@contextlib.contextmanager
def serving(bundle: Path, *options: str) -> Iterator[tuple[str, int]]:
    """Run the command on a free port; yield where it listens."""
    command = [sys.executable, "-m", "torchrec_mtl", "serve", str(bundle), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = ""
            for line in process.stderr:
                said += line
                if found := re.search(r"http://([\d.]+):(\d+), its page", line):
                    threading.Thread(target=process.stderr.read, daemon=True).start()  # or its pipe would fill
                    yield found[1], int(found[2])
                    return
            raise RuntimeError(f"{' '.join(command)} ended with status {process.wait()}: {said}")
        finally:
            process.terminate()


def _sides(
    predictor: Predictor, questions: Sequence[Question], connection: http.client.HTTPConnection
) -> dict[str, Callable[[int], object]]:
    columns, rows = ([q.body(rows=as_rows) for q in questions] for as_rows in (False, True))
    return {
        "predictor": lambda i: predictor.score(questions[i].user, questions[i].candidates),
        "HTTP, columns": lambda i: post(connection, columns[i]),
        "HTTP, rows": lambda i: post(connection, rows[i]),
    }


def _in_turn(sides: Mapping[str, Callable[[int], object]], calls: int, questions: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = Random(0)
    for call in range(calls):
        # In an order of its own each time: whoever follows a call of another process finds the caches cold.
        for name in order.sample([*sides], len(sides)):
            ask = sides[name]
            start = time.perf_counter()
            ask(call % questions)
            times[name].append(time.perf_counter() - start)
    return times


def _under_load(host: str, port: int, bodies: list[bytes], clients: int, seconds: float) -> tuple[float, Latency]:
    """Ask from several processes at once: threads of one would measure its interpreter."""
    script = str(Path(__file__).with_name("http_client.py"))
    command = [sys.executable, script, host, str(port)]
    with contextlib.ExitStack() as stack:
        asking = [
            stack.enter_context(
                subprocess.Popen([*command, str(i)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for i in range(clients)
        ]
        given = json.dumps([body.decode() for body in bodies])
        for client in asking:
            _tell(client, given)
        for client in asking:
            if not _heard(client).startswith("ready"):
                raise RuntimeError(f"a client ended with status {client.wait()} before it began")
        start = time.perf_counter()
        for client in asking:
            _tell(client, str(seconds))
        found = [json.loads(_heard(client) or "null") for client in asking]
        took = time.perf_counter() - start
    if None in found:
        raise RuntimeError("a client ended early; its error is above")
    whole = [x for mine in found for x in mine]
    return len(whole) / took, Latency.of(whole)


def _tell(client: subprocess.Popen[str], line: str) -> None:
    assert client.stdin is not None
    client.stdin.write(f"{line}\n")
    client.stdin.flush()


def _heard(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--candidates", type=int, default=500)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure_http(
        args.bundle, candidates=args.candidates, calls=args.calls, repeats=args.repeats, seconds=args.seconds
    )
    print(f"{machine()}; one user, {args.candidates} candidates, {args.repeats} x {args.calls} calls\n")
    print(found.table())


if __name__ == "__main__":
    main()
