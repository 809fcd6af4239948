"""A study's folder: whose it is, and what of it may be deleted."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrec_mtl.atomic import write_text
from torchrec_mtl.bench.identity import canonical
from torchrec_mtl.config.differences import differences
from torchrec_mtl.config.explain import ConfigError
from torchrec_mtl.config.text import read_plain, read_yaml, write_yaml
from torchrec_mtl.tuning import rows
from torchrec_mtl.tuning.study import Study

_FILE = "study.yaml"
_MARK = "data files"
_TRIALS = "trials"  # its one key that is no part of the study's identity
WRITTEN = (rows.FILE, "study.journal", "front.json", "front.md", "front.html", "best.yaml")
_DRAWINGS = "front-*.svg"
WORK, FAILED = "work", "failed"


def check(out: Path, study: Study, *, fresh: bool) -> None:
    """Make sure that a folder is a study's to write, or to go on in.

    Raises:
        ConfigError: another study, or something else, lies there.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(["a file lies there, where the results need a folder; name another --out"], source=str(out))
    old = _read(out)
    if old is None:
        strange = [name for name in (_FILE, *WRITTEN) if (out / name).exists()]
        if strange:
            text = f"{', '.join(strange)} there, and no study that can be read; take another --out"
            raise ConfigError([text], source=str(out))
        return
    old.pop(_TRIALS, None)
    changed = [] if fresh else _differences(old, _identity(study))
    if changed:
        where = f"{out} holds another study (go on with its config and space, take another --out, or --fresh)"
        raise ConfigError(changed, source=where)


def enter(out: Path, study: Study, *, fresh: bool) -> None:
    """Make the folder this study's; ``check`` had nothing against it."""
    if fresh and (out / _FILE).exists():
        for path in (*(out / name for name in WRITTEN), *out.glob(_DRAWINGS), out / _FILE):
            path.unlink(missing_ok=True)
        for name in (WORK, FAILED):
            shutil.rmtree(out / name, ignore_errors=True)
    if not (out / _FILE).exists():
        write_text(out / _FILE, write_yaml(_identity(study)))


def num_trials(out: Path) -> int:
    """Return how many trials the search of a folder had when it last came to its end; 0: it never did."""
    count = (_read(out) or {}).get(_TRIALS, 0)
    return count if isinstance(count, int) else 0


def note_trials(out: Path, study: Study, count: int) -> None:
    """Note how many trials the search had: those that repeat a config, or have none, leave no row behind."""
    if num_trials(out) != count:
        write_text(out / _FILE, write_yaml({**_identity(study), _TRIALS: count}))


def _read(out: Path) -> dict[str, Any] | None:
    found = read_plain(out / _FILE) if (out / _FILE).exists() else None
    return found if isinstance(found, dict) else None


def _identity(study: Study) -> dict[str, Any]:
    """Return all that decides which trials are proposed and what they come to; seeds may be added later."""
    space, weights = study.space, study.weights or ()
    config, _ = read_yaml(canonical(study.run))
    return {
        "config": config,
        "search": {d.name: d.model_dump(mode="json", exclude={"name"}, exclude_defaults=True) for d in space.search},
        "objectives": [objective.name for objective in study.objectives],
        "weights": {o.name: w for o, w in zip(study.objectives, weights, strict=False)},
        "tuning_seed": space.tuning_seed,
        "startup": space.startup,
        "round": space.round,
        _MARK: study.files_mark,
    }


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = differences(old, new, may_differ=lambda path: path == _MARK)
    marks = old.get(_MARK), new[_MARK]
    if all(marks) and marks[0] != marks[1]:  # empty: the data were still to be made
        found.append(f"{_MARK}: their names, sizes, or row groups are not those of the trials before")
    return found
