"""An item index as a folder: ``index.faiss``, ``ids.parquet`` and ``index.json``."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import torchrec_mtl
from torchrec_mtl.retrieval.index_engines import Labels, import_faiss

FORMAT = 1
_ABOUT, _IDS, _INDEX = "index.json", "ids.parquet", "index.faiss"
_FILES = frozenset({_ABOUT, _IDS, _INDEX})


@dataclass(frozen=True)
class Stored:
    """What a folder holds.

    Attributes:
        index: faiss's, with the vectors.
        ids: [N].
        labels: [N], what the index knows each item by.
        about: everything else.
    """

    index: Any
    ids: pa.Array
    labels: Labels
    about: Mapping[str, Any]


def write(folder: str | Path, stored: Stored) -> None:
    """Write an index in the place of one that may be there, which stays whole until the new one is.

    Raises:
        ValueError: the folder holds something else.
    """
    final, partial, old = _places(folder)
    _check_replaceable(final)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_files(partial, stored)
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(partial, final)
    shutil.rmtree(old, ignore_errors=True)


def read(folder: str | Path) -> Stored:
    """Read an index.

    Raises:
        ValueError: there is none, its format is another one, or files are missing or do not belong together.
        ImportError: faiss is not installed.
    """
    final, _, old = _places(folder)
    place = old if old.is_dir() and not final.exists() else final  # a save stopped between its two renames
    about = _read_about(place)
    if missing := sorted(name for name in _FILES if not (place / name).is_file()):
        raise ValueError(f"the index in {place} is not whole: {', '.join(missing)} missing; save it again")
    index = import_faiss().read_index(str(place / _INDEX))
    table = pq.read_table(place / _IDS)
    ids, labels = (table[name].combine_chunks() for name in ("id", "label"))
    stored = Stored(index, ids, labels.to_numpy().astype(np.int64, copy=False), about)
    if len(ids) != about["items"] or len(ids) > index.ntotal or index.d != about["dim"]:
        raise ValueError(
            f"files of the index in {place} do not belong together: {len(ids)} ids, {index.ntotal} vectors of width "
            f"{index.d}, and {_ABOUT} says {about['items']} items of width {about['dim']}; save it again"
        )
    return stored


def _places(folder: str | Path) -> tuple[Path, Path, Path]:
    """Return where an index lies, where it is written first, and where the previous one waits; links are followed."""
    final = Path(folder).resolve()
    return final, final.with_name(f".partial-{final.name}"), final.with_name(f".old-{final.name}")


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the index")
    if others := sorted(path.name for path in folder.iterdir() if path.name not in _FILES):
        raise ValueError(f"{folder} holds other files, such as {others[0]}; name a folder of its own for the index")


def _write_files(folder: Path, stored: Stored) -> None:
    import_faiss().write_index(stored.index, str(folder / _INDEX))
    pq.write_table(pa.table({"id": stored.ids, "label": stored.labels}), folder / _IDS)
    about = {
        "format": FORMAT,
        "torchrec_mtl": torchrec_mtl.__version__,
        "faiss": import_faiss().__version__,
        "items": len(stored.ids),
        **stored.about,
    }
    (folder / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    for name in _FILES:
        _flush(folder / name)


def _flush(path: Path) -> None:
    """Have the disk hold a file before its folder gets its name, in case the machine stops."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"no index in {folder}: there is no {_ABOUT}; ItemIndex.save writes one") from error
    except ValueError as error:
        raise ValueError(f"{folder / _ABOUT} cannot be read: {error}; save the index again") from error
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        by = about.get("torchrec_mtl", "unknown") if isinstance(about, dict) else "unknown"
        raise ValueError(
            f"the index in {folder} has format {found} (written by torchrec_mtl {by}), and this version reads format "
            f"{FORMAT}; build it again"
        )
    return dict(about)
