"""The page of several runs: what sets them apart, which is better at what, and their curves in the same charts."""

from __future__ import annotations

from collections.abc import Sequence

from torchrec_mtl.bench.report import Cell, Table
from torchrec_mtl.report_page import overlay
from torchrec_mtl.report_page.curves import HOW_TO_READ as CURVES
from torchrec_mtl.report_page.differences import difference_table
from torchrec_mtl.report_page.findings import findings_of
from torchrec_mtl.report_page.groups import Group, group_runs
from torchrec_mtl.report_page.html import document, folded, said, sections, table_of
from torchrec_mtl.report_page.memory import HOW_TO_READ as MEMORY
from torchrec_mtl.report_page.memory import memory_of
from torchrec_mtl.report_page.read import Run
from torchrec_mtl.report_page.reliability import reliability_of
from torchrec_mtl.report_page.run import config_text, damaged_of, plugged
from torchrec_mtl.report_page.scoreboard import how_to_read, metrics_tables, transfer_table

_BANDS = " Where a config has several seeds: their mean, and its 95 % interval as bars or shaded."


def comparing_page(runs: Sequence[Run]) -> str:
    """Return the page of at least two runs.

    Raises:
        ValueError: a run is given twice.
    """
    groups = group_runs(runs)
    parts = {
        "Runs": _runs(groups),
        "Metrics": _metrics(groups),
        "Negative transfer": _transfer(groups),
        "Calibration and lift": reliability_of(groups) or said("No run has a calibration.json: see docs/report.md."),
        "Training": _training(groups),
        "Gradients": overlay.gradients_of(groups) or said("No run logged anything of the tasks' gradients."),
        "Heads": _heads(groups),
        "Sharding and memory": _memory(groups),
        "Config": _configs(groups),
    }
    configs = "one config" if len(groups) == 1 else f"{len(groups)} configs"
    count = f"{len(runs)} runs" + ("" if len(runs) == len(groups) else f" of {configs}")
    return document(f"Comparison of {count}", [], sections(parts))


def _runs(groups: Sequence[Group]) -> str:
    rows = tuple(
        (
            Cell(group.name, number=False),
            Cell(plugged(group.first), number=False),
            Cell(", ".join(str(run.seed) for run in group.runs)),
            Cell(", ".join("-" if run.step is None else f"{run.step:,}" for run in group.runs)),
            Cell(", ".join(str(run.folder) for run in group.runs), number=False),
        )
        for group in groups
    )
    notes = ("Step: of the checkpoint evaluated at the end.",)
    return table_of(Table("What was trained", ("run", "what", "seeds", "step", "folder"), rows, notes))


def _metrics(groups: Sequence[Group]) -> str:
    tables = metrics_tables(groups)
    notes = "".join(map(said, how_to_read(groups)))
    return notes + ("".join(map(table_of, tables)) or said("No run has a final evaluation."))


def _transfer(groups: Sequence[Group]) -> str:
    table = transfer_table(groups)
    return (
        said(
            "Nothing to compare with: give also a run that learns each task alone (head single_task), or runs of one "
            "task."
        )
        if table is None
        else table_of(table)
    )


def _training(groups: Sequence[Group]) -> str:
    damaged = "".join(damaged_of(run) for group in groups for run in group.runs)
    speed = overlay.speed_of(groups)
    return "".join(
        [
            said(CURVES + _BANDS),
            damaged,
            f"<h3>Losses</h3>{overlay.losses_of(groups)}",
            f"<h3>Metrics</h3>{overlay.metrics_of(groups)}",
            folded("Speed", speed) if speed else "",
        ]
    )


def _heads(groups: Sequence[Group]) -> str:
    """Return what heads found, closed at first where there are several."""
    told = [(group, run, findings_of(run.findings)) for group in groups for run in group.runs[:1] if run.findings]
    if len(told) == 1:
        ((group, _, found),) = told
        return said(f"Of {group.name}:") + found
    parts = [folded(_of_seed(group, run), found) for group, run, found in told]
    return "".join(parts) or said("No head tells anything beyond its metrics.")


def _of_seed(group: Group, run: Run) -> str:
    return f"{group.name}, seed {run.seed}" if len(group.runs) > 1 else group.name


def _memory(groups: Sequence[Group]) -> str:
    there = [(group, run) for group in groups for run in group.runs[:1] if run.ranks]
    drawn = "".join(memory_of(run.ranks or (), title=_of_seed(group, run)) for group, run in there)
    return said(MEMORY) + drawn if drawn else said("No run has a ranks.json: see docs/report.md.")


def _configs(groups: Sequence[Group]) -> str:
    table = difference_table(groups)
    same = said("The configs differ in their folders and seeds alone.")
    whole = "".join(config_text(group.first, f"{group.name}: config.yaml") for group in groups)
    return (table_of(table) if table.rows else same) + whole
