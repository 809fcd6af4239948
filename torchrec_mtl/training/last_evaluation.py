"""The evaluation at the end of a run, and what it leaves for the report beside the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchrec_mtl.atomic import write_text
from torchrec_mtl.collectives import rank
from torchrec_mtl.data.files import DataFile
from torchrec_mtl.findings import Finding
from torchrec_mtl.training import calibration, ranks_file
from torchrec_mtl.training.evaluation import Evaluation, as_json
from torchrec_mtl.training.findings import FILE as FINDINGS
from torchrec_mtl.training.findings import save_findings
from torchrec_mtl.training.footprint import gather_footprints
from torchrec_mtl.training.gate_use import GateUse
from torchrec_mtl.training.session import Session


def evaluate_last(
    session: Session, files: Sequence[DataFile] | None, split: str, step: int
) -> tuple[Evaluation | None, tuple[Finding, ...]]:
    """Evaluate the model as it is, and write metrics, calibration, and findings; on all ranks together.

    Args:
        session: holds the model to be judged.
        files: what to evaluate on; None: there is nothing, and only the head has findings.
        split: "test" or "eval".
        step: of the checkpoint that the model comes from.

    Returns:
        The evaluation, and the findings of the head and, on rank 0, of its gates.
    """
    run_dir = Path(session.config.run_dir)
    findings = tuple(session.objective.head.findings())
    evaluation = None
    if files is not None:
        gates = GateUse(session.objective.head.watched_gates(), session.objective.tasks)
        evaluation = session.evaluate(files, gates=gates, grouped=True)
        findings += gates.findings(split, session.config.data.group)
    if rank() == 0:
        if findings:
            save_findings(run_dir / FINDINGS, findings)
        if evaluation is not None:
            found = calibration.Calibration(step, split, evaluation.groups)
            calibration.save_calibration(run_dir / calibration.FILE, found)
            write_text(run_dir / "metrics.json", as_json(step, evaluation) + "\n")  # last: who sees it finds the others
    return evaluation, findings


def write_ranks(session: Session) -> None:
    """Write what each rank held when training ended; on all ranks together."""
    ranks = gather_footprints(session)
    if rank() == 0:
        ranks_file.save_ranks(Path(session.config.run_dir) / ranks_file.FILE, ranks)
