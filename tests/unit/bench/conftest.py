import pytest

from tests.planted_run import write_planted_run
from tests.unit.bench.suites import PLUGIN, write_suite


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """``run.yaml``, its data, ``suite.yaml``, and a module ``bench_plugin`` on the path."""
    write_planted_run(tmp_path)
    (tmp_path / "bench_plugin.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_suite(tmp_path)
    return tmp_path
