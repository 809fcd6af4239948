r"""What HTTP adds to a predictor's call: /score with one user and 500 candidates, on loopback.

    python -m benchmarks.serving_http BUNDLE [--candidates 500] [--calls 300] [--repeats 5] [--seconds 5]

The server is the command itself, in a process of its own; requests are made up from the columns of the bundle (drawn
with seed 0) and sent over one open connection. Calls of the predictor in this process, with the same values, take turns
with requests whose candidates come as columns and as rows: the overhead is the difference of their medians. Then
several clients at once: requests a second, and how long they took.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measured import Spread
from torchrec_mtl.bench.machine import machine
from torchrec_mtl.serving.predictor import Predictor
from torchrec_mtl.serving.server.columns import ServedColumn, served_columns

_HISTORY = 30
_QUESTIONS = 16


@dataclass(frozen=True)
class Question:
    """One request, as values and as bodies."""

    user: dict[str, Any]
    candidates: dict[str, list[Any]]

    def body(self, *, rows: bool) -> bytes:
        """Return the body, candidates as rows or as columns."""
        given: object = self.candidates
        if rows:
            given = [dict(zip(self.candidates, values)) for values in zip(*self.candidates.values())]
        return json.dumps({"user": self.user, "candidates": given}).encode()


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
        overhead: of HTTP at p50, in milliseconds, by form of the body; a difference within each repeat.
        load: clients -> requests a second, and how long they took.
    """

    latency: dict[str, Latency]
    overhead: dict[str, Spread]
    load: dict[int, tuple[float, Latency]]

    def table(self) -> str:
        """Return all of it as Markdown."""
        lines = ["| | p50 ms | p95 ms | p99 ms |", "| --- | ---: | ---: | ---: |"]
        lines += [f"| {name} | {x.p50:.2f} | {x.p95:.2f} | {x.p99:.2f} |" for name, x in self.latency.items()]
        lines += ["", "| body | HTTP overhead at p50, ms |", "| --- | ---: |"]
        lines += [f"| {name} | {spread} |" for name, spread in self.overhead.items()]
        lines += ["", "| clients | requests/s | p50 ms | p95 ms | p99 ms |", "| ---: | ---: | ---: | ---: | ---: |"]
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
    """
    predictor = Predictor.load(bundle)
    questions = make_questions(predictor, candidates)
    with serving(bundle, *options) as (host, port):
        sides = _sides(predictor, questions, http.client.HTTPConnection(host, port))
        times: dict[str, list[list[float]]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, found in _in_turn(sides, calls).items():
                times[name].append(found)
        load = {n: _under_load(host, port, [q.body(rows=False) for q in questions], n, seconds) for n in clients}
    medians = {name: [float(np.median(found)) * 1000 for found in blocks] for name, blocks in times.items()}
    return HttpFigures(
        latency={name: Latency.of([x for block in blocks for x in block]) for name, blocks in times.items()},
        overhead={
            name: Spread.of([mine - base for mine, base in zip(medians[name], medians["predictor"])])
            for name in sides
            if name != "predictor"
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
    predictor: Predictor, questions: list[Question], connection: http.client.HTTPConnection
) -> dict[str, Callable[[int], object]]:
    columns, rows = ([q.body(rows=as_rows) for q in questions] for as_rows in (False, True))
    return {
        "predictor": lambda i: predictor.score(questions[i].user, questions[i].candidates),
        "HTTP, columns": lambda i: _post(connection, columns[i]),
        "HTTP, rows": lambda i: _post(connection, rows[i]),
    }


def _in_turn(sides: dict[str, Callable[[int], object]], calls: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sides}
    for call in range(calls):
        for name, ask in sides.items():
            start = time.perf_counter()
            ask(call % _QUESTIONS)
            times[name].append(time.perf_counter() - start)
    return times


def _post(connection: http.client.HTTPConnection, body: bytes) -> bytes:
    connection.request("POST", "/score", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {content[:500]!r}")
    return content


def _under_load(host: str, port: int, bodies: list[bytes], clients: int, seconds: float) -> tuple[float, Latency]:
    found: list[list[float]] = [[] for _ in range(clients)]
    end = time.perf_counter() + seconds

    def ask(mine: list[float], first: int) -> None:
        connection = http.client.HTTPConnection(host, port)
        call = first
        while (start := time.perf_counter()) < end:
            _post(connection, bodies[call % len(bodies)])
            mine.append(time.perf_counter() - start)
            call += 1

    threads = [threading.Thread(target=ask, args=(mine, i)) for i, mine in enumerate(found)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = [x for mine in found for x in mine]
    return len(whole) / (time.perf_counter() - start), Latency.of(whole)


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
