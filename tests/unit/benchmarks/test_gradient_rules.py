"""The benchmark prints a table with a row for each rule and cut."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
WORDS = ["--tasks", "2", "--rules", "htlnet", "--repeats", "1", "--steps", "2", "--batch-size", "64"]


def test_it_prints_a_row_for_each_variant():
    result = subprocess.run(
        [sys.executable, "benchmarks/gradient_rules.py", *WORDS],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "2 tasks, head htlnet" in result.stdout
    rows = re.findall(r"^\| (\w+) \| (.+?) \| \d+ \| \d+\.\d\d \(.* to .*\) \|$", result.stdout, re.MULTILINE)
    assert rows == [
        ("sum", "-"),
        ("htlnet", "embeddings, boundary"),
        ("htlnet", "embeddings, rows"),
        ("htlnet", "representation, boundary"),
    ]
