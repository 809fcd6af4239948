"""Run folders and indexes with a file damaged or crafted, and places where nothing can be written."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from torch.distributed.checkpoint.metadata import Metadata

from benchmarks.bad_inputs_tables import Bad, Proof
from torchrec_mtl.training.checkpoint_notes import Notes, read_notes

RUN_FILES: Mapping[str, str] = {
    "config": "config.yaml",
    "statistics": "statistics.json",
    "metrics": "metrics.json",
    "log": "metrics.jsonl",
    "notes": "checkpoints/*/notes.json",
    "metadata": "checkpoints/*/.metadata",
    "tensors": "checkpoints/*/*.distcp",
}
INDEX_FILES: Mapping[str, str] = {"about": "index.json", "ids": "ids.parquet", "vectors": "index.faiss"}

_JSON = [
    *("", "{", "[]", "{}", "null", "3", '"x"', "NaN", "[" * 100_000, '{"a":' * 100_000, "[[[1]]]", '{"step": "x"}'),
    *(
        '{"step": 1, "tasks": []}',
        '{"step": -1, "tasks": {"click": 3}}',
        '{"step": null, "tasks": {"click": {"a": "b"}}}',
    ),
    *('{"step": 1, "tasks": {"click": {"auc": [1]}}}', '{"step": ' + "9" * 5000 + ', "tasks": {}}', "\ufeff{}", "\x00"),
]


def damage_file(rng: Random, path: Path) -> Bad:
    """Spoil one file: gone, cut, flipped, other content, a folder or a link in its place, or a value in its JSON."""
    content = path.read_bytes()
    how = rng.choice(
        ["gone", "empty", "cut", "flipped", "other", "folder", "loop", "pickle", "value", "value", "bytes"]
    )
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "loop":
        path.symlink_to(path)
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Proof(path.with_suffix(".proof"))))
    elif how == "other":
        path.write_text(rng.choice(_JSON), encoding="utf-8")
    elif how == "bytes":
        path.write_bytes(rng.randbytes(rng.randrange(1, 300)))
    elif how == "value" and path.suffix in {".json", ".jsonl"}:
        path.write_text(_other_value(rng, content.decode()), encoding="utf-8")
    elif how != "gone":
        path.write_bytes(_changed(rng, content, how))
    # A file is asked for by its name, a checkpoint by its folder.
    return Bad(f"{path.name} {how}", (path.name, str(path.parent.parent), str(path.parent), "run_dir"))


def _changed(rng: Random, content: bytes, how: str) -> bytes:
    if how in {"empty", "cut"}:
        return content[: 0 if how == "empty" else rng.randrange(max(1, len(content)))]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 2, 10])):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _other_value(rng: Random, text: str) -> str:
    """Replace a value anywhere in JSON, or in one of its lines."""
    lines = text.splitlines() if text.count("\n{") else [text]
    line = rng.randrange(len(lines))
    raw = json.loads(lines[line])
    node, key = raw, None
    while isinstance(node, (dict, list)) and node:
        parent, key = node, rng.choice([*node] if isinstance(node, dict) else range(len(node)))
        node = parent[key]
        if rng.random() < 0.3:
            break
    if key is not None:
        parent[key] = rng.choice([None, "x", -1, 2**70, 1e400, [], {}, [[1]], True, "../../../etc/passwd", "<script>"])
    return "\n".join([*lines[:line], json.dumps(raw), *lines[line + 1 :]])


def damage(rng: Random, folder: Path, pattern: str) -> Bad:
    """Spoil a file of a run or an index."""
    return damage_file(rng, rng.choice(sorted(folder.glob(pattern))))


WEIRD_NAMES: Sequence[str] = (
    *(
        "a b",
        "\u00fc\u4f60\U0001f600",
        "new\nline",
        "tab\t",
        "[a]*?",
        "~",
        "-",
        "--json",
        "%s{0}",
        "a=b",
        "'\"",
        "$(x)",
        "x" * 200,
    ),
    *("[bold]red[bold]", "[red]", "<script>alert(1)<script>"),
)


def place(rng: Random, folder: Path, name: str, *, is_folder: bool = False) -> tuple[Path, Bad]:
    """Return where to write, which cannot be written, or has a strange name.

    Args:
        rng: draws it.
        folder: exists, is empty, and can be written.
        name: of what is to be written, with its suffix.
        is_folder: a folder is to be written.
    """
    file = folder / "file"
    file.write_text("of somebody else")
    full = folder / "full"
    full.mkdir()
    (full / "mine.txt").write_text("of somebody else")
    bad = {
        "below a file": file / name,
        "too long a name": folder / ("x" * 300) / name,
        "of no device": Path("/proc/no such place") / name,
        "a loop of links": folder / "loop" / name,
        "a NUL in it": folder / f"a\0b{name}",
        "a file": file if is_folder else full,
    }
    (folder / "loop").symlink_to(folder / "loop")
    if not is_folder:
        bad["a device"] = folder / "device"
        (folder / "device").symlink_to("/dev/full")
    if rng.random() < 0.6:
        what = rng.choice([*bad])
        return bad[what], Bad(
            f"to write: {what}", (str(bad[what])[:100], *bad[what].parts[-2:], "NUL", "null"), fails=True
        )
    found = folder / rng.choice(WEIRD_NAMES) / rng.choice(WEIRD_NAMES) / name
    return found, Bad(f"to write: {str(found)!r}", (), fails=None)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file below a folder that is no lock."""
    found = {}
    for path in folder.rglob("*"):
        if not path.is_dir() and path.name != ".lock":
            state = path.lstat()
            found[str(path.relative_to(folder))] = (state.st_size, state.st_mtime_ns)
    return found


def copy(source: Path, target: Path) -> Path:
    """Copy a run or an index, to be spoilt."""
    shutil.copytree(source, target)
    return target


def damage_metadata(folder: Path, change: Callable[[Metadata], None]) -> None:
    """Pickle the metadata of a checkpoint again, after ``change`` has changed it, with notes that hold no checksums."""
    path, notes = folder / ".metadata", read_notes(folder)
    assert notes is not None
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))
    Notes(notes.notes, notes.best).write(folder)
