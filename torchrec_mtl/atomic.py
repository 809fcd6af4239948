"""Files that are whole or not there: written under another name, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a kill or a full disk leaves what was there before.

    Raises:
        OSError: it could not be written.
    """
    partial = path.with_name(f".partial-{path.name}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def whole_file(out: Path) -> Iterator[Path]:
    """Yield where to write a file that takes the place of ``out`` when all of it is there; else it is removed.

    Raises:
        ValueError: ``out`` cannot be written: a folder or a device lies there, no folder can be made, the disk is full.
    """
    partial = out.with_name(f".partial-{out.name}")
    try:
        if out.exists() and not out.is_file():  # a rename would put a file in the place of /dev/null
            raise ValueError(f"cannot write {out}: it is no file; name another one")
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            flush(partial)
            os.replace(partial, out)
            sync_folder(out.parent)
        finally:
            with suppress(OSError):
                partial.unlink()
    except OSError as error:
        below_a_file = isinstance(error, (FileExistsError, NotADirectoryError))
        reason = "what should be its folder is a file" if below_a_file else error.strerror or str(error)
        raise ValueError(f"cannot write {out}: {reason}; name another file") from error


def replace_folder(partial: Path, final: Path, *, old: Path) -> None:
    """Put a whole folder in the place of one that may be there.

    Args:
        partial: the new one.
        final: its name.
        old: where the previous one waits; a kill between two renames leaves it there, and nothing under ``final``.

    Raises:
        OSError: it could not be renamed.
    """
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
    os.replace(partial, final)
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def flush(path: Path) -> None:
    """Have the disk hold a file that is written and closed."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have renames in a folder outlast a loss of power, as far as its file system can."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems of networks refuse: their servers see to it
        pass
    finally:
        os.close(descriptor)
