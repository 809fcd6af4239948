"""The benchmark's comparison of masks, and its table of step times."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.ncs4cvr import compare, show_overlaps

ROOT = Path(__file__).parents[3]


def test_masks_are_compared_with_each_other_with_chance_and_with_the_initial_weights():
    masks = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    initial = torch.tensor([9.0, 8, 7, 1, 2, 3, 4, 5])  # the first mask has the largest, the second two of them
    found = compare(masks, initial)
    assert found.densities == (3 / 8, 3 / 8)
    assert found.learned == pytest.approx(2 / 4)
    assert found.random == pytest.approx((9 / 64) / (6 / 8 - 9 / 64))
    assert found.initial == pytest.approx((1 + 2 / 4) / 2)


def test_overlaps_are_shown_as_means_and_ranges_over_seeds():
    runs = [[compare(torch.ones(2, 4, dtype=torch.bool), torch.rand(4))] for _ in range(2)]
    table = show_overlaps(runs, ["layer 1"], ["click", "buy"]).splitlines()
    assert (
        table[2]
        == "| layer 1 | 1.000, 1.000 | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) | 1.000 (1.000 to 1.000) |"
    )


def test_it_prints_a_row_for_each_number_of_tasks():
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.ncs4cvr", "speed", "--tasks", "1", "2", "--batch", "8", "--repeats", "1"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    for count in (1, 2):
        assert f"| {count} masked networks | " in result.stdout
