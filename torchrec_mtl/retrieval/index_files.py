"""An item index as a folder: ``index.faiss``, ``ids.parquet`` and ``index.json``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import torchrec_mtl
from torchrec_mtl.atomic import flush, replace_folder
from torchrec_mtl.checksums import damage, sha256
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
        ValueError: the folder holds something else, or cannot be written.
    """
    try:
        final, partial, old = _places(folder)
        _check_replaceable(final)
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            _write_files(partial, stored)
            replace_folder(partial, final, old=old)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # it may be the disk that is full
    except (OSError, RuntimeError) as error:  # faiss raises RuntimeError, as a loop of links does
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[-1]
        raise ValueError(f"cannot write an index to {folder}: {reason}; name another folder") from error


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
    _check_sums(place, about)
    stored = _read_files(place, about)
    ids, index = stored.ids, stored.index
    if len(ids) != about.get("items") or len(ids) > index.ntotal or index.d != about.get("dim"):
        raise ValueError(
            f"files of the index in {place} do not belong together: {len(ids)} ids, {index.ntotal} vectors of width "
            f"{index.d}, and {_ABOUT} says {about.get('items')} items of width {about.get('dim')}; save it again"
        )
    return stored


def _check_sums(folder: Path, about: Mapping[str, Any]) -> None:
    """Refuse files that are not what was written: faiss, in C++, trusts what it reads."""
    sums = about.get("sha256", {})  # an index of before there were any has none
    if not isinstance(sums, dict):
        raise ValueError(f"{folder / _ABOUT}: sha256 must be a mapping (found {type(sums).__name__}); save it again")
    for name in (_IDS, _INDEX) if sums else ():
        if (problem := damage(folder / name, sums.get(name))) is not None:
            raise ValueError(f"the index in {folder} is damaged: {problem}; save it again")


def _read_files(folder: Path, about: Mapping[str, Any]) -> Stored:
    try:
        index = import_faiss().read_index(str(folder / _INDEX))
        table = pq.read_table(folder / _IDS)
        ids, labels = (table[name].combine_chunks() for name in ("id", "label"))
        return Stored(index, ids, labels.to_numpy().astype(np.int64, copy=False), about)
    except (RuntimeError, KeyError, OSError, MemoryError, pa.ArrowException) as error:  # faiss raises RuntimeError
        reason = (str(error).strip() or repr(error)).splitlines()[-1]
        raise ValueError(f"the index in {folder} is damaged: {reason}; save it again") from error


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
        "sha256": {name: sha256(folder / name) for name in (_IDS, _INDEX)},
    }
    (folder / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    for name in _FILES:
        flush(folder / name)


def _read_about(folder: Path) -> dict[str, Any]:
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"no index in {folder}: there is no {_ABOUT}; ItemIndex.save writes one") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / _ABOUT} cannot be read: {error}; save the index again") from error
    found = about.get("format") if isinstance(about, dict) else None
    if found != FORMAT:
        by = about.get("torchrec_mtl", "unknown") if isinstance(about, dict) else "unknown"
        raise ValueError(
            f"the index in {folder} has format {found} (written by torchrec_mtl {by}), and this version reads format "
            f"{FORMAT}; build it again"
        )
    return dict(about)
