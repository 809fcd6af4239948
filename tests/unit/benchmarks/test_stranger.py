"""What the clock of a stranger's path types is what the commands print."""

import re

from typer.testing import CliRunner

from benchmarks.stranger import ENTER, TO_A_HEAD
from torchrec_mtl.cli import app


def test_to_a_head_of_ones_own_leads_what_is_printed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = CliRunner().invoke(app, ["new", "head", "my_head"])
    assert made.exit_code == 0, made.output
    first, *others = re.findall(r"^  (.+)$", made.stdout.split("next:")[1], re.MULTILINE)
    assert [command for _, command in TO_A_HEAD] == [
        f"{ENTER} && torchrec-mtl new head my_head",
        *(f"{ENTER} && {first} && {step}" for step in others),
    ]
