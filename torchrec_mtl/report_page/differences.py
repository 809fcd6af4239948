"""What sets configs apart: the keys that differ, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import yaml

from torchrec_mtl.bench.report import Cell, Table
from torchrec_mtl.report_page.groups import Group, same_start

_LONGEST = 200
_BEFORE = 40  # letters in common that a value cut short keeps before the first that differs


def difference_table(groups: Sequence[Group]) -> Table:
    """Return a row a key that differs, a column a config; "-" where a config does not have it."""
    flat = [_flat(group.first.config) for group in groups]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    differing = [key for key in keys if len({values.get(key) for values in flat}) > 1]
    rows = tuple(
        (Cell(key, number=False), *(Cell(text, number=False) for text in _shortened([v.get(key) for v in flat])))
        for key in differing
    )
    return Table("Keys that differ", ("key", *(group.name for group in groups)), rows)


def _shortened(texts: Sequence[str | None]) -> list[str]:
    """Cut long texts to what is around the first letter that differs; "-" where there is none."""
    there = [text for text in texts if text is not None]
    cut = len(set(there)) > 1 and max(map(len, there)) > _LONGEST
    start = max(0, same_start(there) - _BEFORE) if cut else 0
    return ["-" if text is None else _cut(text, start) for text in texts]


def _cut(text: str, start: int) -> str:
    end = start + _LONGEST
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"


def _flat(config: Mapping[str, object]) -> dict[str, str]:
    """Return path -> value, without the folder of the run and its seed, which the table of runs has."""
    found = dict(_pairs(config, ""))
    return {key: value for key, value in found.items() if key not in {"run_dir", "train.seed"}}


def _pairs(value: object, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _pairs(item, f"{path}.{key}" if path else str(key))
    elif named := _by_name(value):
        for name, item in named.items():
            yield from _pairs(item, f"{path}.{name}")
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
        yield path, text.removesuffix("...\n").strip()


def _by_name(value: object) -> dict[str, dict[str, object]]:
    """Return the items of a list whose items have names, such as tables and tasks."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) and "name" in item for item in value):
        return {}
    return {
        str(item["name"]): {str(k): v for k, v in item.items() if k != "name"} or {"name": item["name"]}
        for item in value
    }
