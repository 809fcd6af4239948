"""Starts one contender as a process of its own and takes what it printed."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.peer_runners.environments import ROOT, environment, python
from benchmarks.peer_runners.spec import MARK, STARTED, Spec


def start(contender: str, spec: Spec, *, timeout: float) -> dict[str, Any]:
    """Run a contender; return what it measured, or ``{"error": ...}``.

    Args:
        contender: "ours" or a peer.
        spec: the job; its folder exists.
        timeout: seconds after which the process is ended.
    """
    path = Path(spec.folder) / "spec.json"
    path.write_text(spec.to_json())
    command = [str(python(contender)), "-W", "ignore", "-m", f"benchmarks.peer_runners.run_{contender}", str(path)]
    env = environment()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**env, STARTED: repr(time.monotonic())},
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not finished after {timeout:.0f} s"}
    return parse(done.stdout, done.stderr, done.returncode)


def parse(stdout: str, stderr: str, status: int) -> dict[str, Any]:
    """Find the result among what a library prints of its own; a process that failed has none."""
    found = [line.removeprefix(MARK) for line in stdout.splitlines() if line.startswith(MARK)]
    if status == 0 and found:
        result: dict[str, Any] = json.loads(found[-1])
        return result
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    why = lines[-1] if lines else "nothing on standard error"
    return {"error": f"exit status {status}: {why}" if status else f"no result printed: {why}"}
