"""What sets configs apart: the keys that differ, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import yaml

from torchrec_mtl.bench.report import Cell, Table
from torchrec_mtl.report_page.groups import Group

_LONGEST = 200


def difference_table(groups: Sequence[Group]) -> Table:
    """Return a row a key that differs, a column a config; "-" where a config does not have it."""
    flat = [_flat(group.first.config) for group in groups]
    keys = list(dict.fromkeys(key for values in flat for key in values))
    differing = [key for key in keys if len({values.get(key) for values in flat}) > 1]
    rows = tuple(
        (Cell(key, number=False), *(Cell(values.get(key, "-"), number=False) for values in flat)) for key in differing
    )
    return Table("Keys that differ", ("key", *(group.name for group in groups)), rows)


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
        text = (
            yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
            .removesuffix("...\n")
            .strip()
        )
        yield path, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _by_name(value: object) -> dict[str, dict[str, object]]:
    """Return the items of a list whose items have names, such as tables and tasks."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, Mapping) and "name" in item for item in value):
        return {}
    return {
        str(item["name"]): {str(k): v for k, v in item.items() if k != "name"} or {"name": item["name"]}
        for item in value
    }
