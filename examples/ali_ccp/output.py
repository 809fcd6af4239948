"""What OUT holds once all is complete: the splits, a YAML with the table sizes found, and sizes.json."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Report:
    """What a split holds, and how many buys without a click its skeleton has, which no split holds."""

    rows: int = 0
    clicks: int = 0
    buys: int = 0
    dropped: int = 0


def publish(
    staging: Path, *, out: Path, rows: Mapping[str, int], report: Mapping[str, Report], about: Mapping[str, int]
) -> None:
    """Moves complete files from `staging` to OUT, with a YAML that has the table sizes, and sizes.json last of all.

    Args:
        staging: Where the splits were written.
        out: The folder of the files.
        rows: The size of each table.
        report: What the splits hold.
        about: Options to note down.
    """
    template = Path(__file__).with_name("mmoe.yaml").read_text(encoding="utf-8")
    (staging / "mmoe.yaml").write_text(fill_config(template, rows=rows, out=out), encoding="utf-8")
    (out / "sizes.json").unlink(missing_ok=True)  # so that an old one never stands beside new files
    for path in sorted(staging.iterdir()):
        os.replace(path, out / path.name)
    splits = {split: dataclasses.asdict(found) for split, found in report.items()}
    sizes = {"tables": rows, "splits": splits, "options": about}
    (staging / "sizes.json").write_text(json.dumps(sizes, indent=1), encoding="utf-8")
    os.replace(staging / "sizes.json", out / "sizes.json")
    for split, found in report.items():
        print(f"{split}: {found.rows:,} rows, {found.clicks:,} clicks, {found.buys:,} buys")
    dropped = {split: report[split].dropped for split in ("train", "test")}
    print(
        f"dropped, with a buy but no click: {dropped['train']:,} of train and validation, {dropped['test']:,} of test"
    )
    print("table sizes:", ", ".join(f"{name} {size:,}" for name, size in rows.items()))
    print(f"written to {out}; train with {out / 'mmoe.yaml'}")


def fill_config(text: str, *, rows: Mapping[str, int], out: Path) -> str:
    """Puts sizes and folder into a YAML of the form of `mmoe.yaml`, comments and all else left as they are.

    Args:
        text: The YAML, with a table `{name: f101, rows: ...` for every size, and files in data/ali_ccp.
        rows: The size of each table.
        out: The folder of the files.

    Returns:
        The YAML to train with.

    Raises:
        ValueError: If a table is not there.
    """
    for name, size in rows.items():
        text, found = re.subn(rf"(name: {name}, rows: )[\d_]+", rf"\g<1>{size}", text)
        if found != 1:
            raise ValueError(
                f"mmoe.yaml has {found} tables `{{name: {name}, rows: ...`, looked for 1; restore the file"
            )
    return text.replace("data/ali_ccp/", f"{out.as_posix()}/")
