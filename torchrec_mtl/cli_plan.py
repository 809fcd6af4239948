"""The command that plans a run before any GPU is rented."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from torchrec_mtl.cli_common import errors_for_people


def add_plan(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan_command)


def plan_command(
    config: Annotated[Path, typer.Argument(help="The run as YAML.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings to change: key.path=value, such as data.batch_size=65536.", show_default=False),
    ] = None,
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs of each machine; with --device cpu its ranks.")] = 8,
    hbm_gib: Annotated[float | None, typer.Option(help="Memory of one GPU in GiB, such as 80.")] = None,
    ddr_gib: Annotated[
        float | None,
        typer.Option(help="Host memory of a machine in GiB; by default 128 a rank. 0: none for tables."),
    ] = None,
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    growth: Annotated[
        str | None,
        typer.Option(help="Numbers of machines to plan for, too, such as 1,2,4,8,16,32,64.", show_default=False),
    ] = None,
    changes: Annotated[
        bool, typer.Option("--changes/--no-changes", help="Where nothing fits, look for the cheapest change.")
    ] = True,
    json_file: Annotated[
        str | None, typer.Option("--json", help="JSON file to write; - prints JSON alone.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG file to write: memory and time by rank.", show_default=False)
    ] = None,
) -> None:
    """Say what each rank would hold and cost, or what does not fit and the cheapest change; no GPU, no table memory.

    The plan is the one that training would make. Memory and milliseconds are TorchRec's estimates for its default
    hardware constants, not measurements. Exit status 1: nothing fits.
    """
    with errors_for_people():
        from torchrec_mtl.planning.command import check_files, make_report, read_cluster, read_growth
        from torchrec_mtl.planning.report import to_json
        from torchrec_mtl.planning.text import render

        cluster = read_cluster(nodes=nodes, gpus=gpus, device=device, hbm_gib=hbm_gib, ddr_gib=ddr_gib)
        sizes = read_growth(growth)
        check_files(json_file, plot)
        report = make_report(config, overrides or (), cluster, growth=sizes, changes=changes, say=_say)
        if json_file == "-":
            typer.echo(to_json(report), nl=False)
        else:
            typer.echo(render(report), nl=False)
        if json_file is not None and json_file != "-":
            _write(Path(json_file), to_json(report))
        if plot is not None:
            from torchrec_mtl.planning.plot import draw

            draw(report, plot)
    if report.plan is None:
        raise typer.Exit(1)


def _say(message: str) -> None:
    typer.echo(message, err=True)


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"--json: cannot write {file}: {error.strerror}; name another file") from None
