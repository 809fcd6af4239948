"""Where a process stands is told in words, and by itself once it stands too long."""

from __future__ import annotations

import time

import pytest

from torchrec_mtl.whereabouts import Whereabouts, telling_standstills, whereabouts


def test_what_is_known_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    here = Whereabouts()
    assert str(here) == "rank 3, starting"
    here.at("training", step=7, phase="joint")
    here.reads("a.parquet, row group 2")
    here.at("evaluating")
    assert str(here) == "rank 3, evaluating, after step 7, phase 'joint', last read a.parquet, row group 2"


def test_a_standstill_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    with telling_standstills(0.2):
        whereabouts.at("waiting for nothing")
        time.sleep(0.7)
        whereabouts.at("waiting for more")
        time.sleep(0.5)
    told = capfd.readouterr().err.splitlines()
    assert [line.split(", ")[1] for line in told] == ["waiting for nothing", "waiting for more"]
    assert all(line.startswith("no progress for 0 s: rank 0") for line in told)


def test_who_goes_on_is_not_told_of(capfd: pytest.CaptureFixture[str]) -> None:
    with telling_standstills(0.5):
        for step in range(20):
            whereabouts.at("training", step=step)
            time.sleep(0.05)
    assert capfd.readouterr().err == ""
