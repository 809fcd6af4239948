"""The results as Markdown: what ran, a table for each job, what is not alike, and ours against the fastest peer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.peer_runners.environments import OURS
from benchmarks.peer_runners.figures import (
    AIMS,
    Range,
    by_repeat,
    compare,
    fastest_peer,
    job_rate,
    mean_auc,
    memory,
    process_rate,
    rate_after_imports,
    training_rate,
)
from benchmarks.peer_runners.plan import Record

_COLUMNS = (
    "contender",
    "runs",
    "training, samples/s",
    "job, samples/s",
    "ours / peer, training",
    "ours / peer, job",
    "peak MiB",
    "AUC",
    "import, s",
    "start to first step, s",
    "whole process, s",
)
_SUMMARY = (
    "data",
    "model",
    "fastest peer",
    "job",
    "training",
    "with building",
    "with imports",
    "memory",
    "AUC, difference",
    "aim (job)",
    "",
)


def report(records: Sequence[Record]) -> str:
    """Return everything as one text."""
    if not records:
        return "no results yet: run `python benchmarks/peers.py run`"
    jobs = split(records)
    parts = [head(records)]
    for job in jobs:
        title = f"## {job[0]['model']}, {job[0]['data']}"
        parts.append("\n".join([title, "", settings(job), "", *job_table(job), "", *limits(job), *notes(job)]))
    parts.append("\n".join(["## Ours against the fastest peer", "", *summary(jobs)]))
    return "\n\n".join(parts)


def split(records: Sequence[Record]) -> list[list[Record]]:
    """Return the results job by job: only runs with the same data, model, and settings are compared."""
    jobs: dict[str, list[Record]] = {}
    for record in records:
        name = json.dumps([record[part] for part in ("data", "model", "settings", "cores")], sort_keys=True)
        jobs.setdefault(name, []).append(record)
    return list(jobs.values())


def head(records: Sequence[Record]) -> str:
    """Return machine, versions, and how to read the tables."""
    lines = ["# This library beside its peers", ""]
    lines += [f"* machine: {text}" for text in _distinct(records, "machine")]
    for contender in dict.fromkeys(r["contender"] for r in records):
        for versions in _distinct([r for r in records if r["contender"] == contender], "versions"):
            lines.append(f"* {contender}: {', '.join(f'{name} {v}' for name, v in versions.items())}")
    repeats = sorted({r["repeat"] for r in records})
    lines += [
        f"* seeds {repeats[0]} to {repeats[-1]}, one a repeat, of initial values and order of rows; the same data",
        "* one process a run, one thread for torch, contenders in turn within a repeat; median (lowest..highest)",
        "* ratios are taken within a repeat; above 1 ours is faster. Training: all steps, with the loading of their "
        "batches. Job: reading, training, evaluating on the test file",
        "* AUC: of each task, from the predictions of the test file, by one function for all",
    ]
    return "\n".join(lines)


def settings(records: Sequence[Record]) -> str:
    """Return the job in words."""
    s = records[0]["settings"]
    return (
        f"{s['train_rows']:,} rows, {s['test_rows']:,} to test; {s['columns']} tables of {s['table_rows']:,} rows in "
        f"all, width {s['dim']}, {s['dense']} dense columns; {s['epochs']} epoch(s), batch {s['batch_size']:,}; our "
        f"tables' learning rate {s['table_lr']:g}; "
        f"{records[0]['cores']} core(s) for each process."
    )


def job_table(records: Sequence[Record]) -> Iterator[str]:
    """Yield the table of one job, ours first, then the peers by name."""
    yield _row(_COLUMNS)
    yield "| --- " * len(_COLUMNS) + "|"
    names = sorted({r["contender"] for r in records}, key=lambda name: (name != OURS, name))
    for name in names:
        runs = list(by_repeat(records, name).values())
        errors = [r["error"] for r in records if r["contender"] == name and "error" in r]
        if runs:
            yield _row([name, _runs(runs, errors), *_cells(records, name, runs)])
        else:
            yield _row([name, "0", _cell_text(errors[-1]), *[""] * (len(_COLUMNS) - 3)])


def limits(records: Sequence[Record]) -> Iterator[str]:
    """Yield what the machine could do meanwhile, and how much of it our training reached."""
    measured = [r for r in records if "gemm_gflops" in r]
    ours = list(by_repeat(measured, OURS).values())
    if not ours:
        return
    gemm, bandwidth = (Range.of([r[name] for r in measured]) for name in ("gemm_gflops", "bandwidth_gbs"))
    yield (
        f"One thread of the machine: matrix products {gemm.text(',.0f')} GFLOP/s, "
        f"bandwidth {bandwidth.text('.1f')} GB/s."
    )
    flops = ours[0]["flops_per_row"]
    share = Range.of([flops * training_rate(r) / (1e9 * r["gemm_gflops"]) for r in ours])
    yield f"Ours: {flops / 1e6:.2f} MFLOP a row; training reaches {share.text('.0%')} of the matrix products' peak."
    yield ""


def notes(records: Sequence[Record]) -> Iterator[str]:
    """Yield what is not alike, for each contender."""
    yield "Not alike:"
    for name in dict.fromkeys(r["contender"] for r in records):
        texts = [note for r in by_repeat(records, name).values() for note in r["notes"]]
        if name != OURS and texts:
            texts.insert(0, "tables: Adam over all rows")
        yield from (f"* {name}: {text}" for text in dict.fromkeys(texts))


def summary(jobs: Sequence[Sequence[Record]]) -> Iterator[str]:
    """Yield the table of ratios against the fastest peer of each job, with the aims."""
    yield _row(_SUMMARY)
    yield "| --- " * len(_SUMMARY) + "|"
    for found in jobs:
        data, model, peer = found[0]["data"], found[0]["model"], fastest_peer(found)
        if peer is None:
            continue
        speeds = [_ratio(compare(found, peer, m)) for m in (job_rate, training_rate, rate_after_imports, process_rate)]
        lead = compare(found, peer, mean_auc, lambda ours, theirs: ours - theirs)
        aim = AIMS.get((data, model))
        missed = [] if aim is None else aim.misses(found, peer)
        met = "" if aim is None else f"not met: {', '.join(missed)}" if missed else "met"
        yield _row(
            [
                data,
                model,
                peer,
                *speeds,
                _ratio(compare(found, peer, memory)),
                "" if lead is None else lead.text("+.4f"),
                "" if aim is None else aim.text(),
                met,
            ]
        )


def _cells(records: Sequence[Record], name: str, runs: Sequence[Record]) -> list[str]:
    ratios = [compare(records, name, m) if name != OURS else None for m in (training_rate, job_rate)]
    tasks = list(runs[0]["auc"])
    return [
        Range.of([training_rate(r) for r in runs]).text(",.0f"),
        Range.of([job_rate(r) for r in runs]).text(",.0f"),
        *(_ratio(ratio) for ratio in ratios),
        Range.of([memory(r) for r in runs]).text(",.0f"),
        ", ".join(f"{task} {Range.of([r['auc'][task] for r in runs]).median:.4f}" for task in tasks),
        Range.of([r["import_seconds"] for r in runs]).text(".1f"),
        Range.of([r["first_step_seconds"] for r in runs]).text(".1f"),
        Range.of([r["process_seconds"] for r in runs]).text(".1f"),
    ]


def _ratio(value: Range | None) -> str:
    return "" if value is None else value.text(".2f")


def _runs(runs: Sequence[Record], errors: Sequence[str]) -> str:
    return f"{len(runs)}" if not errors else f"{len(runs)}, {len(errors)} failed: {_cell_text(errors[-1])}"


def _cell_text(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:160]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _distinct(records: Sequence[Record], name: str) -> list[Any]:
    values = [r[name] for r in records]
    return [value for i, value in enumerate(values) if value not in values[:i]]
