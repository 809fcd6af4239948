"""The command line. Torch is imported inside the commands that need it, so that help and lists come at once."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from torchrec_mtl import __version__, doctor
from torchrec_mtl.cli_check import add_check
from torchrec_mtl.cli_common import RunDir, errors_for_people, errors_of_serving
from torchrec_mtl.cli_export import add_export
from torchrec_mtl.cli_new import add_new
from torchrec_mtl.cli_plan import add_plan
from torchrec_mtl.cli_report import add_report
from torchrec_mtl.cli_retrieval import add_retrieval
from torchrec_mtl.cli_serve import add_serve
from torchrec_mtl.cli_state import add_state
from torchrec_mtl.cli_tune import add_tune

app = typer.Typer(
    help="Config-driven multi-task recommenders on TorchRec.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Check, show, or describe a config.", no_args_is_help=True)
app.add_typer(config_app, name="config")

ConfigFile = Annotated[Path, typer.Argument(help="The run as YAML.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings to change: key.path=value, such as train.epochs=2.", show_default=False),
]
DataFiles = Annotated[
    list[str], typer.Option("--data", help="Parquet file, folder, or glob; may be repeated.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON alone on standard output.")]


def main() -> None:
    """Run the command line."""
    if not sys.warnoptions:
        # Deprecations inside torch and torchrec are ours to follow, not the user's; `python -W` shows them.
        warnings.filterwarnings("ignore", module=r"(torch|torchrec|fbgemm_gpu)\.")
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    return


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: forget what run_dir holds.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a config, or go on where its run_dir stopped; at the end print the metrics by task.

    Writes to run_dir: config.yaml, statistics.json, init_from.json, metrics.jsonl, metrics.json, calibration.json,
    ranks.json, findings.json, checkpoints/, tb/.
    """
    with errors_for_people():
        from rich.console import Console

        from torchrec_mtl.config.load import load_config
        from torchrec_mtl.training import report
        from torchrec_mtl.training.distributed import process_group
        from torchrec_mtl.training.evaluation import as_json as to_json
        from torchrec_mtl.training.run import train as run_training

        run = load_config(config, overrides or ())
        console = Console(stderr=as_json)
        with process_group(run.train.device, run.train.timeout_s) as device:
            result = run_training(run, device, fresh=fresh, console=console)
        if os.environ.get("RANK", "0") != "0":
            return
        if not result.trained:
            console.print(f"{run.run_dir} was finished before; --fresh starts over", highlight=False, soft_wrap=True)
        if as_json:
            typer.echo(to_json(result.step, result.evaluation))
            return
        report.show(console, run, result)
        console.print(
            f"metrics, checkpoints, and TensorBoard logs are in {run.run_dir}", highlight=False, soft_wrap=True
        )


@app.command()
def evaluate(
    run: RunDir,
    data: DataFiles,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained run on other data, with its best checkpoint."""
    with errors_for_people():
        from rich.console import Console

        from torchrec_mtl.training import report
        from torchrec_mtl.training.evaluation import as_json as to_json
        from torchrec_mtl.training.inference import evaluate_run

        step, evaluation, config = evaluate_run(run, data)
        if os.environ.get("RANK", "0") != "0":
            return
        if as_json:
            typer.echo(to_json(step, evaluation))
            return
        report.show_evaluation(Console(), config, {config.head.type: evaluation.tasks}, f"step {step}")


@app.command()
def predict(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|BUNDLE", help="The run_dir of a trained run, or a bundle.", show_default=False),
    ],
    data: DataFiles,
    out: Annotated[Path, typer.Option(help="Parquet file to write.", show_default=False)],
    compiled: Annotated[bool, typer.Option("--compiled", help="Run a bundle's native code: if you trust it.")] = False,
) -> None:
    """Write the key columns of the data and one column of predictions a task, in the order of the input."""
    if not (source / "bundle.json").is_file():
        with errors_for_people():
            from torchrec_mtl.training.inference import predict_run

            if compiled:
                raise ValueError(f"{source} is no bundle, and has no native code; torchrec-mtl export makes one")
            typer.echo(f"{predict_run(source, data, out)} rows written to {out}")
        return
    with errors_of_serving():
        from torchrec_mtl.serving.files import predict_files
        from torchrec_mtl.serving.predictor import Predictor

        rows, missing = predict_files(Predictor.load(source, compiled=compiled), data, out)
        if missing:
            typer.echo(f"missing columns, whose defaults were taken: {', '.join(missing)}", err=True)
        typer.echo(f"{rows} rows written to {out}")


@app.command()
def bench(
    suite: Annotated[Path, typer.Argument(help="The suite as YAML.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Folder; by default runs/bench-NAME.", show_default=False)] = None,
    models: Annotated[
        list[str] | None, typer.Option(help="Run these models alone; may be repeated.", show_default=False)
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Run on these data sets alone; may be repeated.", show_default=False)
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="Runs at once.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all configs and count the runs.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Write the tables of what is there.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run again what failed before.")] = False,
) -> None:
    """Compare models on data sets: equal tuning, several seeds, tables with intervals; or go on where it stopped.

    Writes to the folder of the results: runs.jsonl, runs.parquet, table.md, table.html, and plots.
    """
    with errors_for_people():
        from rich.console import Console

        from torchrec_mtl.bench.command import InterruptedBenchError, Options
        from torchrec_mtl.bench.command import bench as run_bench

        options = Options(
            suite,
            out,
            data or (),
            models or (),
            processes,
            dry_run=dry_run,
            report_only=report_only,
            retry_failed=retry_failed,
        )
        try:
            run_bench(options, Console())
        except InterruptedBenchError as stop:
            typer.echo(f"{stop}; the same command goes on from there", err=True)
            raise typer.Exit(130) from None


@app.command("doctor")
def doctor_command() -> None:
    """Look at the installed versions; name what does not fit, and the command that mends it."""
    findings = doctor.diagnose()
    typer.echo(doctor.render(findings))
    if any(f.level == "error" for f in findings):
        raise typer.Exit(1)


Listed = Literal["heads", "bottoms", "losses", "rules", "sinks"]


@app.command("list")
def list_command(kind: Annotated[Listed, typer.Argument(help="What to list.", show_default=False)]) -> None:
    """List the built-in and installed heads, bottoms, losses, gradient rules, or sinks."""
    from torchrec_mtl import registry

    singular: dict[str, registry.Kind] = {"heads": "head", "bottoms": "bottom", "losses": "loss", "rules": "rule"}
    found = registry.listing(singular.get(kind, "sink"))
    if not found:
        typer.echo(f"no {kind} are installed; a class of yours is named by its path, package.module:Class", err=True)
    width = max((len(name) for name, _ in found), default=0)
    for name, description in found:
        typer.echo(f"{name:<{width}}  {description}")


@config_app.command("check")
def config_check(config: ConfigFile, overrides: Overrides = None) -> None:
    """Report everything that is wrong with a config, and with the columns of its data where the files exist."""
    with errors_for_people():
        from torchrec_mtl.config.checks import notes, refused_in_runs
        from torchrec_mtl.config.load import ConfigError, load_config
        from torchrec_mtl.data.splits import missing_files, open_data

        run = load_config(config, overrides or ())
        if problems := refused_in_runs(run):
            raise ConfigError(problems, source=str(config))
        for note in notes(run):
            typer.echo(f"{config}: note: {note}")
        if missing := missing_files(run):
            if run.data.prepare is None:
                open_data(run)
            typer.echo(f"{config}: fine; {missing[0]} is still to be made by {Path(str(run.data.prepare)).name}")
            return
        open_data(run)
        typer.echo(f"{config}: fine")


@config_app.command("show")
def config_show(config: ConfigFile, overrides: Overrides = None) -> None:
    """Print the merged config: file, overrides, and all defaults."""
    with errors_for_people():
        from torchrec_mtl.config.load import dump, load_config

        typer.echo(dump(load_config(config, overrides or ())), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON schema of configs, for completion in editors."""
    with errors_for_people():
        from torchrec_mtl.config.schema import json_schema

        schema: dict[str, Any] = json_schema()
        json.dump(schema, sys.stdout, indent=2)
        typer.echo()


add_check(app)
add_new(app)
add_export(app)
add_plan(app)
add_report(app)
add_retrieval(app)
add_serve(app)
add_state(app)
add_tune(app)
