"""One client of a load test, in a process of its own: it asks until its time is up, and says how long each took.

    python benchmarks/http_client.py HOST PORT FIRST < INPUT

Standard input holds a line of JSON, a list of bodies, and then, when all clients are to begin, one with the seconds.
It prints a line when it is ready, and at its end a list of seconds. Nothing but Python's own modules: it starts at
once, and asks as fast as its own interpreter allows, whatever other clients do.
"""

from __future__ import annotations

import http.client
import json
import sys
import time


def post(connection: http.client.HTTPConnection, body: bytes) -> bytes:
    """Return what /score answers.

    Raises:
        RuntimeError: it is an error.
    """
    connection.request("POST", "/score", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(f"status {response.status}: {content[:500]!r}")
    return content


def main() -> None:
    host, port, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    bodies = [body.encode() for body in json.loads(sys.stdin.readline())]
    connection = http.client.HTTPConnection(host, port)
    post(connection, bodies[first % len(bodies)])
    print("ready", flush=True)
    end = time.perf_counter() + float(sys.stdin.readline())
    found, call = list[float](), first
    while (start := time.perf_counter()) < end:
        post(connection, bodies[call % len(bodies)])
        found.append(time.perf_counter() - start)
        call += 1
    print(json.dumps(found))


if __name__ == "__main__":
    main()
