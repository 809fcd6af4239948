import pytest

from tests.planted_run import write_planted_run
from tests.unit.tuning.studies import study_in, write_space


@pytest.fixture
def folder(tmp_path):
    """``run.yaml``, its data, and ``space.yaml``."""
    write_planted_run(tmp_path)
    write_space(tmp_path)
    return tmp_path


@pytest.fixture
def study(folder):
    return study_in(folder)
