import pytest

from torchrec_mtl.bench.job import speed


def test_speed_weighs_the_windows_by_their_time():
    lines = [
        {"step": 10, "train/samples_per_s": 100.0},
        {"step": 10, "eval/click/auc": 0.5},
        {"step": 30, "train/samples_per_s": 50.0},
    ]
    steps, seconds = speed(lines, batch_size=5)
    assert steps == 30
    assert seconds == pytest.approx(10 * 5 / 100 + 20 * 5 / 50)
