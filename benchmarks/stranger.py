"""How long somebody takes who has never seen this repository: to a report page, and to a head of one's own.

    python -m benchmarks.stranger [--folder DIR]

Clones the last commit into an empty folder and types what README says, then what `torchrec-mtl new` prints, with no
environment there and whatever pip has cached. Downloads are part of it, so times are of this machine and its network.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from torchrec_mtl.bench.machine import machine

ROOT = Path(__file__).resolve().parents[1]
ENTER = "source .venv/bin/activate"
ENTER_HEAD = f"{ENTER} && cd my_head"
TO_A_REPORT = (
    ("make train", "make train"),
    ("report", f"{ENTER} && torchrec-mtl report runs/cdnow-htlnet"),
)
TO_A_HEAD = (
    ("torchrec-mtl new head", f"{ENTER} && torchrec-mtl new head my_head"),
    ("install it", f'{ENTER_HEAD} && pip install -e ".[test]"'),
    ("its tests", f"{ENTER_HEAD} && python -m pytest"),
    ("train it", f"{ENTER_HEAD} && torchrec-mtl train train.yaml"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="an empty folder; by default a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        clone = (args.folder or Path(name)) / "clone"
        # A stranger has neither our environment nor our path.
        kept = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHONPATH", "OMP_NUM_THREADS"}}
        kept["PATH"] = os.pathsep.join(p for p in kept["PATH"].split(os.pathsep) if not p.startswith(sys.prefix))
        print(machine().removesuffix(", one thread a run"))
        total = _timed("git clone", f"git clone --quiet {ROOT} {clone}", ROOT, kept)
        for title, steps in (("to a report page", TO_A_REPORT), ("to a head of one's own, from there", TO_A_HEAD)):
            spent = sum(_timed(step, command, clone, kept) for step, command in steps)
            total += spent
            print(f"{title}: {spent:.0f} s; since the clone began: {total:.0f} s", flush=True)


def _timed(name: str, command: str, folder: Path, environment: dict[str, str]) -> float:
    start = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    took = time.monotonic() - start
    if done.returncode:
        sys.exit(f"{command} ended with status {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    print(f"  {name}: {took:.1f} s", flush=True)
    return took


if __name__ == "__main__":
    main()
