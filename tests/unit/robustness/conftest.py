"""Good data, runs, and an index, made once; the tests spoil copies."""

import pytest
from hypothesis import HealthCheck, Phase, settings

from benchmarks.bad_inputs_tries import prepare

# The same few inputs every time; benchmarks/bad_inputs.py tries many.
settings.register_profile(
    "few",
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # a seed has no simpler one
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("good"))
