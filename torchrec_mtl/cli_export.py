"""The command that makes a bundle of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from torchrec_mtl.cli_common import RunDir, errors_for_people

if TYPE_CHECKING:
    from torchrec_mtl.serving.bundle import About

_BITS: dict[str, Literal[8, 4]] = {"int8": 8, "int4": 4}


def add_export(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export")(export_command)


def export_command(
    run: RunDir,
    out: Annotated[Path, typer.Option(help="Folder of the bundle.", show_default=False)],
    quantise: Annotated[
        Literal["int8", "int4"] | None, typer.Option(help="Quantise the tables, row by row.", show_default=False)
    ] = None,
    max_loss: Annotated[
        float, typer.Option(min=0, help="With --quantise: so much AUC may be lost, and nrmse gained.")
    ] = 0.001,
    rows: Annotated[int, typer.Option(min=1, help="Rows to compare with the trainer.")] = 10_000,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Files of these rows; by default the run's test or eval data.", show_default=False),
    ] = None,
    native: Annotated[
        bool, typer.Option("--compile", help="Native code, too (AOTInductor): takes minutes and a C++ compiler.")
    ] = False,
) -> None:
    """Write a bundle to serve: tables, programs, encoder; refuse it where it does not score as the trainer does."""
    with errors_for_people():
        from torchrec_mtl.serving.export import Options, export_run

        options = Options(_BITS[quantise] if quantise else None, max_loss, rows, data or (), native)
        about = export_run(run, out, options)
        _tell(about, out)


def _tell(about: About, out: Path) -> None:
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    typer.echo(f"bundle of step {about.step} written to {out}: {size:,} bytes")
    parity = about.parity
    assert parity is not None, "it was measured"
    worst = max(parity.largest, key=lambda name: parity.largest[name])
    typer.echo(
        f"largest difference from the trainer over {parity.rows:,} rows: {parity.largest[worst]:.1e} ({worst}), "
        f"in batches of 1 to 1,000 rows of {', '.join(parity.data)}"
    )
    for task, change in parity.metrics.items():
        typer.echo(f"{task}: {change.metric} {change.before:.5f}, with quantised tables {change.after:.5f}")
