"""What can be given to which command: every kind of bad input, made ready as the words of a command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from benchmarks import bad_inputs_runs as runs
from benchmarks.bad_inputs_files import KINDS, spoil
from benchmarks.bad_inputs_tables import Bad
from benchmarks.bad_inputs_tries import FEATURES, LABELS, Workbench, plain_config, suite
from benchmarks.bad_inputs_yaml import YAML_KINDS, override, spoil_yaml

Words = list[str | Path]
Maker = Callable[[Random, Workbench, Path], tuple[Words, Bad]]

# What these commands are told by the footers alone; they read no values.
_FOOTERS = frozenset({"missing column", "mistyped column", "column twice", "zero rows", "truncated", "no Parquet"})
_OF_FOOTERS = frozenset({"config check", "bench"})


@dataclasses.dataclass(frozen=True)
class Try:
    """A kind of bad input on a command.

    Attributes:
        kind: of input.
        command: that gets it.
        make: (random numbers, good things, an empty folder) to the words of the command line and what is wrong.
    """

    kind: str
    command: str
    make: Maker


def all_tries() -> list[Try]:
    """Return every kind on every command that can get it."""
    found = [Try(kind, command, _table(kind, command)) for kind in KINDS for command in _TABLES]
    found += [Try(f"YAML: {kind}", command, _yaml(kind, command)) for kind in YAML_KINDS for command in _CONFIGS]
    found += [Try("override", command, _override(command)) for command in _CONFIGS if command in _COMMANDS]
    for file in runs.RUN_FILES:
        found += [Try(f"run: {file}", command, _run(file, command)) for command in _RUNS]
    found += [
        Try(f"index: {file}", command, _index(file, command)) for file in runs.INDEX_FILES for command in _INDEXES
    ]
    found += [Try("place to write", command, _place(command)) for command in _PLACES]
    return found + [Try("file names", command, _name(command)) for command in _TABLES]


def _columns(command: str) -> Sequence[str]:
    known = {"predict": FEATURES, "index": ("item_id", "tags"), "search": ("user_id",)}
    return known.get(command, (*FEATURES, *LABELS))


def _words(command: str, data: Path, bench: Workbench, scratch: Path) -> Words:
    """Return a command that reads a file."""
    config = bench.folder / "config.yaml"
    known: Mapping[str, Words] = {
        "train": ["train", config, f"data.train={_quoted(data)}", f"run_dir={scratch / 'run'}"],
        "train, eval": ["train", config, f"data.eval={_quoted(data)}", f"run_dir={scratch / 'run'}"],
        "evaluate": ["evaluate", bench.run, "--data", data],
        "predict": ["predict", bench.run, "--data", data, "--out", scratch / "out.parquet"],
        "check": ["check", config, f"data.train={_quoted(data)}"],
        "config check": ["config", "check", config, f"data.train={_quoted(data)}"],
        "bench": ["bench", scratch / "suite.yaml", "--dry-run", "--out", scratch / "out"],
        "index": ["index", bench.retrieval, "--items", data, "--out", scratch / "out"],
        "search": ["search", bench.index, "--queries", data, "--out", scratch / "out.parquet", "-k", "5"],
    }
    return known[command]


_TABLES = ("train", "train, eval", "evaluate", "predict", "check", "config check", "bench", "index", "search")


def _quoted(path: Path) -> str:
    """Return a path as YAML in JSON's way."""
    import json

    return json.dumps(str(path))


def _suite(bench: Workbench, scratch: Path, data: Path) -> None:
    raw = suite(bench.folder)
    raw["data"]["planted"]["set"] = {"data.train": str(data)}
    bench.write(raw, scratch / "suite.yaml")


def _table(kind: str, command: str) -> Maker:
    def make(rng: Random, bench: Workbench, scratch: Path) -> tuple[Words, Bad]:
        data = scratch / "bad.parquet"
        good = bench.items if command == "index" else bench.rows
        bad = spoil(kind, rng, good, _columns(command), data)
        if command in _OF_FOOTERS and kind not in _FOOTERS:
            bad = dataclasses.replace(bad, fails=None if bad.fails else bad.fails)
        _suite(bench, scratch, data)
        return _words(command, data, bench, scratch), dataclasses.replace(bad, places=(*bad.places, data.name))

    return make


def _name(command: str) -> Maker:
    def make(rng: Random, bench: Workbench, scratch: Path) -> tuple[Words, Bad]:
        folder = scratch / rng.choice(runs.WEIRD_NAMES)
        folder.mkdir(parents=True)
        data = folder / f"{rng.choice(runs.WEIRD_NAMES)}.parquet"
        good = {"index": "items.parquet", "check": "train.parquet"}.get(command, "eval.parquet")
        data.write_bytes((bench.folder / good).read_bytes())
        _suite(bench, scratch, data)
        return _words(command, data, bench, scratch), Bad(f"good rows in {str(data)!r}", (), fails=False)

    return make


_COMMANDS: Mapping[str, Words] = {
    "train": ["train"],
    "check": ["check"],
    "plan": ["plan", "--device", "cpu", "--gpus", "1"],
    "config check": ["config", "check"],
    "config show": ["config", "show"],
}
_OF_RUNS = ("evaluate", "predict", "report", "unshard")
_CONFIGS = (*_COMMANDS, "bench", *_OF_RUNS)


def _yaml(kind: str, command: str) -> Maker:
    def make(rng: Random, bench: Workbench, scratch: Path) -> tuple[Words, Bad]:
        raw = plain_config(bench.folder, str(scratch / "run"))
        if command in _OF_RUNS:
            run = runs.copy(bench.run, scratch / "bad")
            (run / "config.yaml").unlink()
            bad = spoil_yaml(kind, rng, raw, run / "config.yaml")
            places = (*bad.places, str(run))
            # The run goes by what it needs of its config: not all that a training would refuse.
            return _with_run(command, run, scratch, bench), dataclasses.replace(bad, places=places, fails=None)
        path = scratch / "bad.yaml"
        if command in _COMMANDS:
            bad = spoil_yaml(kind, rng, raw, path)
            words = [*_COMMANDS[command], path]
            return [*words, "--no-changes"] if command == "plan" else words, bad
        if rng.random() < 0.5:
            bad = spoil_yaml(kind, rng, raw, path)
            bench.write(suite(bench.folder) | {"data": {"planted": {"config": str(path)}}}, scratch / "suite.yaml")
            bad = dataclasses.replace(bad, places=(*bad.places, "suite.yaml"))
            return ["bench", scratch / "suite.yaml", "--dry-run", "--out", scratch / "out"], bad
        bad = spoil_yaml(kind, rng, suite(bench.folder), path)
        return ["bench", path, "--dry-run", "--out", scratch / "out"], bad

    return make


def _override(command: str) -> Maker:
    def make(rng: Random, bench: Workbench, scratch: Path) -> tuple[Words, Bad]:
        raw = plain_config(bench.folder, str(scratch / "run"))
        word, bad = override(rng, raw)
        path = bench.write(raw, scratch / "good.yaml")
        return [*_COMMANDS[command], path, "--", word], bad

    return make


def _with_run(command: str, run: Path, scratch: Path, bench: Workbench) -> Words:
    data = bench.folder / "eval.parquet"
    known: Mapping[str, Words] = {
        "evaluate": ["evaluate", run, "--data", data],
        "predict": ["predict", run, "--data", data, "--out", scratch / "out.parquet"],
        "report": ["report", run, "--out", scratch / "out.html"],
        "unshard": ["unshard", run, "--out", scratch / "out.pt", "--optimizers"],
        "train": ["train", bench.folder / "config.yaml", f"run_dir={run}"],
        "train, init_from": [
            *("train", bench.folder / "config.yaml", f"init_from={run}", f"run_dir={scratch / 'new'}"),
            "init_from.optimizers=true",
        ],
        "index": ["index", run, "--items", bench.folder / "items.parquet", "--out", scratch / "out"],
    }
    return known[command]


_RUNS = (*_OF_RUNS, "train", "train, init_from", "index")


def _run(file: str, command: str) -> Maker:
    def make(rng: Random, bench: Workbench, scratch: Path) -> tuple[Words, Bad]:
        run = runs.copy(bench.retrieval if command == "index" else bench.run, scratch / "bad")
        bad = runs.damage(rng, run, runs.RUN_FILES[file])
        return _with_run(command, run, scratch, bench), dataclasses.replace(bad, places=(*bad.places, str(run)))

    return make


_INDEXES = ("search", "index, add")


def _index(file: str, command: str) -> Maker:
    def make(rng: Random, bench: Workbench, scratch: Path) -> tuple[Words, Bad]:
        folder = runs.copy(bench.index, scratch / "bad")
        bad = dataclasses.replace(runs.damage(rng, folder, runs.INDEX_FILES[file]), places=(str(folder),))
        if command == "search":
            queries = bench.folder / "eval.parquet"
            return ["search", folder, "--queries", queries, "--out", scratch / "out.parquet", "-k", "5"], bad
        items = bench.folder / "items.parquet"  # they are there already, which a good index would say
        bad = dataclasses.replace(bad, places=(*bad.places, items.name))
        return ["index", bench.retrieval, "--items", items, "--out", folder, "--add"], bad

    return make


_PLACES = ("train", "predict", "report", "unshard", "index", "search", "check", "plan", "plan, plot", "bench")


def _place(command: str) -> Maker:
    def make(rng: Random, bench: Workbench, scratch: Path) -> tuple[Words, Bad]:
        config, data = bench.folder / "config.yaml", bench.folder / "eval.parquet"
        is_folder = command in {"train", "index", "bench"}
        out, bad = runs.place(rng, scratch, "out.parquet", is_folder=is_folder)
        planned: Words = ["plan", config, "--device", "cpu", "--gpus", "1", "--no-changes"]
        known: Mapping[str, Words] = {
            "train": ["train", config, f"run_dir={_quoted(out)}"],
            "predict": ["predict", bench.run, "--data", data, "--out", out],
            "report": ["report", bench.run, "--out", out],
            "unshard": ["unshard", bench.run, "--out", out],
            "index": ["index", bench.retrieval, "--items", bench.folder / "items.parquet", "--out", out],
            "search": ["search", bench.index, "--queries", data, "--out", out],
            "check": ["check", config, "--out", out],
            "plan": [*planned, f"--json={out}"],
            "plan, plot": [*planned, "--plot", out.with_suffix(".png")],
            "bench": ["bench", bench.folder / "suite.yaml", "--report-only", "--out", out],
        }
        if command == "plan, plot":  # it names its file as matplotlib does
            bad = dataclasses.replace(bad, fails=None, places=(*bad.places, out.stem, str(out.parent)))
        return known[command], bad

    return make
