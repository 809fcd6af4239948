"""The command line of torchrec-mtl with a trace: what each rank was at, and a mark of each batch that it trained on.

Started by `benchmarks/faults.py` under torchrun; ``FAULTS_TRACE`` names the folder of the traces.
"""

from __future__ import annotations

import os
import time
import zlib
from pathlib import Path

from torchrec_mtl.cli import main
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.objective import Objective
from torchrec_mtl.whereabouts import Whereabouts, whereabouts


def trace() -> None:
    """Write a line for each change of what is being done, and for each batch trained on; a kill loses no line."""
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    path = Path(os.environ["FAULTS_TRACE"]) / f"{int(attempt):04d}-{os.environ['RANK']}-{os.getpid()}"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(*words: object) -> None:
        os.write(file, (" ".join(map(str, (f"{time.time():.3f}", *words))) + "\n").encode())

    at, forward = Whereabouts.at, Objective.forward

    def traced_at(self: Whereabouts, doing: str, *, step: int | None = None, phase: str | None = None) -> None:
        if doing != self.doing:
            write("doing", doing)
        at(self, doing, step=step, phase=phase)

    def traced_forward(self: Objective, pooled: object, unpooled: object, batch: Batch) -> object:
        if self.training:
            write("batch", (whereabouts.step or 0) + 1, mark(batch))
        return forward(self, pooled, unpooled, batch)  # type: ignore[arg-type]

    Whereabouts.at = traced_at  # type: ignore[method-assign]
    Objective.forward = traced_forward  # type: ignore[method-assign, assignment]
    write("doing", "importing")


def mark(batch: Batch) -> int:
    """Return a number that another batch will not have: of this rank's labels, weights, and dense columns."""
    return zlib.crc32(b"".join(t.contiguous().numpy().tobytes() for t in (batch.labels, batch.weights, batch.dense)))


if __name__ == "__main__":
    trace()
    main()
