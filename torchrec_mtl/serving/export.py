"""From a trained run to a bundle: tables streamed, the dense part traced, and both compared with the trainer."""

from __future__ import annotations

import glob
import io
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import torch
from torch.export import ExportedProgram

import torchrec_mtl
from torchrec_mtl.atomic import flush, replace_folder
from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.files import find_files, open_files
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.losses.base import LabelScale
from torchrec_mtl.model import MultiTaskModel, build_model
from torchrec_mtl.quiet import leave_out_advice
from torchrec_mtl.serving import bundle, parity
from torchrec_mtl.serving.bundle import ABOUT, COMPILED, FORMAT, PROGRAMS, TABLES, About, Task
from torchrec_mtl.serving.columns import Elements, check_elements, elements_of
from torchrec_mtl.serving.inputs import RowInputs
from torchrec_mtl.serving.layout import Layout, lay_out
from torchrec_mtl.serving.program import Inputs, Kind, Program, export_program
from torchrec_mtl.serving.tables import map_tables, write_tables
from torchrec_mtl.serving.trusted import read_program
from torchrec_mtl.training.run_dir import load_run
from torchrec_mtl.training.state_names import read_names
from torchrec_mtl.training.stored import StoredTensors
from torchrec_mtl.training.stored_run import StoredRun

_COPIED = ("config.yaml", "statistics.json", "metrics.json")


@dataclass(frozen=True)
class Options:
    """How to export.

    Attributes:
        quantise: bits of a number of the tables; None: as trained.
        max_loss: with ``quantise``: so much AUC may a binary task lose, and so much nrmse a regression gain.
        rows: compared with the trainer.
        data: files of these rows; by default the run's test, else its eval, else its training data.
        compile: native code, too (AOTInductor; needs a C++ compiler).
    """

    quantise: Literal[8, 4] | None = None
    max_loss: float = 0.001
    rows: int = 10_000
    data: Sequence[str] = ()
    compile: bool = False


def export_run(run: str | Path, out: str | Path, options: Options | None = None) -> About:
    """Write a bundle of a run's best checkpoint, in the place of one that may be there.

    Tables go from the checkpoint to the bundle block by block, whatever ranks and plan wrote them, and the trainer's
    model, which the bundle is compared with, reads the checkpoint's own files: no table is in memory whole.

    Args:
        run: its ``run_dir``.
        out: folder of the bundle.
        options: see `Options`.

    Returns:
        What the bundle says of itself, its parity among it.

    Raises:
        ValueError: it is no run, the folder holds something else, or a part cannot be exported.
        CheckpointError: there is no checkpoint, or it is damaged.
        ParityError: the bundle does not score as the trainer does; it is not kept.
    """
    options = options or Options()
    leave_out_advice()
    found = StoredRun.find(run)
    found.check()
    config, statistics, _ = load_run(run)
    config = config.model_copy(update={"train": config.train.model_copy(update={"precision": "fp32"})})
    final = Path(out).resolve()
    _check_replaceable(final)
    partial = _partial(final)
    # Tables that are stored in parts are put together there for the trainer's model.
    scratch = partial.with_name(f"{partial.name}-parts")
    try:
        for name in (TABLES, PROGRAMS):
            (partial / name).mkdir(parents=True)
        stored = StoredTensors(found.path)
        model = trained_model(config, statistics, stored, scratch)
        about = _write(Path(run), found, stored, config, model, partial, options)
        measured = parity.measure(model, config, statistics, partial, options)
        about = bundle.describe(partial, about.model_copy(update={"parity": measured}))
        assert bundle.read_about(partial) == about, "it reads back as it was written"
        for name in (*bundle.files_of(partial), ABOUT):
            flush(partial / name)
        replace_folder(partial, final, old=partial.with_name(f"{partial.name}-old"))
    except OSError as error:
        raise ValueError(f"cannot write a bundle to {out}: {error.strerror or error}; name another folder") from error
    finally:
        for folder in (partial, scratch):
            shutil.rmtree(folder, ignore_errors=True)
    return about


def _partial(final: Path) -> Path:
    """Return where this process writes first, beside the bundle; remove what exports that were killed left there."""
    begin = f".partial-{final.name}-"
    for left in final.parent.glob(f"{glob.escape(begin)}*"):
        owner = left.name.removeprefix(begin).partition("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            shutil.rmtree(left, ignore_errors=True)
    return final.with_name(f"{begin}{os.getpid()}")


def trained_model(config: RunConfig, statistics: Statistics, stored: StoredTensors, scratch: Path) -> MultiTaskModel:
    """Return the trainer's model in one process, unsharded, its tables mapped from the checkpoint's files.

    Args:
        config: the run.
        statistics: of its training data.
        stored: its checkpoint, which must stay where it is while the model is in use.
        scratch: folder for tables that are stored in several parts; to be removed when the model is no longer used.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    scales = {name: LabelScale.of(s) for name, s in statistics.labels.items()}
    model = build_model(config, scales, device="cpu")
    weights = [name for name in read_names(stored.shapes) if name.state is None]
    state = {name.parameter: stored.whole(name.stored, scratch / str(i)) for i, name in enumerate(weights)}
    tables = {name.parameter for name in weights if name.table is not None}
    model.embeddings.load_state_dict(
        {k.removeprefix("embeddings."): v for k, v in state.items() if k in tables}, assign=True
    )
    prefix = "objective."
    model.objective.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return model.eval().requires_grad_(False)


def _write(
    run: Path,
    found: StoredRun,
    stored: StoredTensors,
    config: RunConfig,
    model: MultiTaskModel,
    folder: Path,
    options: Options,
) -> About:
    for name in _COPIED:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    objective = model.objective
    layout = lay_out(config.features, objective.reader.spec, options.quantise)
    names = {n.table: n.stored for n in read_names(stored.shapes) if n.state is None and n.table is not None}
    write_tables(layout, stored, names, folder / TABLES)
    tables = map_tables(layout, folder / TABLES)
    kinds: tuple[Kind, ...] = ("rows", "one_user")
    if config.retrieval is not None:
        kinds += ("users", "items")
    outputs: tuple[str, ...] = ()
    for kind in kinds:
        program = Program(objective, layout, kind)
        inputs = (*example_inputs(layout, len(config.features.dense), one_user=kind == "one_user"), tables)
        exported = _exported(program, inputs, config)
        outputs = outputs or program.outputs
        _save(exported, folder / PROGRAMS / f"{kind}.pt2")
        if options.compile:
            _compile(exported, inputs, folder / COMPILED / f"{kind}.pt2")
    return bundle.write_about(
        folder,
        About(
            format=FORMAT,
            versions=_versions(),
            run=run.resolve().name,
            step=found.step,
            checkpoint=found.digest(),
            head=config.head.type,
            tasks=tuple(Task(name=task.name, kind=task.kind) for task in config.tasks),
            outputs=outputs,
            programs=kinds,
            compiled=options.compile,
            features=config.features,
            elements=_elements(config, options),
            bad_ids=config.data.bad_ids,
            keys=config.data.keys,
            retrieval=bundle.retrieval_names(config.retrieval),
            layout=layout,
            quantised=options.quantise,
            parity=None,
            sha256={},
        ),
    )


def _elements(config: RunConfig, options: Options) -> dict[str, Elements]:
    """Return what columns of ids held in training; where its files are gone, what they hold in those to compare."""
    compared = open_files(parity.files_to_compare(config, options.data))
    given = {file.path: elements_of(config.features, file.schema) for file in compared}
    trained, _ = find_files(config.data.train)
    found = {k: v for file in trained for k, v in elements_of(config.features, file.schema).items()}
    for path, elements in given.items():
        check_elements(elements, found, path)
        found = {**elements, **found}
    return found


def _exported(program: Program, inputs: Inputs, config: RunConfig) -> ExportedProgram:
    try:
        return export_program(program, inputs)
    except Exception as error:  # torch raises all kinds at what it cannot trace
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"head {config.head.type} under bottom {config.bottom.type} cannot be exported as program "
            f"'{program.kind}': {reason}. Its forward must be free of sizes and branches that depend on values; "
            "docs/extend.md says how"
        ) from error


def _save(exported: ExportedProgram, out: Path) -> None:
    written = io.BytesIO()  # torch ends the process where a disk is full
    torch.export.save(exported, written)
    out.write_bytes(written.getvalue())
    read_program(out)


def example_inputs(layout: Layout, num_dense: int, *, one_user: bool) -> RowInputs:
    """Return inputs of four rows to trace a program with."""
    rows = 4
    pooled, histories = [], []
    for group in layout.groups(one_user=one_user):
        readers = 1 if one_user and group[0].user else rows
        ids = torch.tensor([field.first for field in group]).repeat_interleave(readers)
        pooled.append((ids, torch.arange(len(ids)).view(len(group), readers), torch.ones(len(group), readers, 1)))
    for place, history in enumerate(layout.histories):
        readers, events = 1 if one_user and history.user else rows, 2 + place
        parts = [torch.full((readers * events,), history.first), torch.full((readers,), events)]
        if history.gaps:
            parts.append(torch.ones(readers * events, dtype=torch.int64))
        histories.append(tuple(parts))
    return torch.zeros(rows, num_dense), pooled, histories


def _compile(exported: ExportedProgram, inputs: Inputs, out: Path) -> None:
    out.parent.mkdir(exist_ok=True)
    exported.example_inputs = (inputs, {})
    try:
        torch._inductor.aoti_compile_and_package(exported, package_path=str(out))
    except Exception as error:  # of compilers, and of torch
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(
            f"cannot compile {out.stem}: {reason}. It needs a C++ compiler (g++) and room in the temporary folder; "
            "leave out --compile where there is none"
        ) from error


def _versions() -> dict[str, str]:
    found = {"torchrec_mtl": torchrec_mtl.__version__, "torch": torch.__version__}
    for name in ("fbgemm-gpu-cpu", "fbgemm-gpu", "torchrec"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _check_replaceable(folder: Path) -> None:
    if not folder.name:
        raise ValueError(f"{folder} cannot be a bundle; name a folder of its own")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the bundle")
    if any(folder.iterdir()) and not (folder / ABOUT).is_file():
        raise ValueError(f"{folder} holds other files, and no bundle; name a folder of its own")
