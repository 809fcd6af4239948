from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from torchrec_mtl.config.load import ConfigError, parse
from torchrec_mtl.config.overrides import apply_overrides
from torchrec_mtl.data.synthetic import make_config

Raw = dict[str, Any]


@pytest.fixture
def raw() -> Raw:
    """A config without mistakes: three tables, four id features, three dense ones, click, long_view, watch_time."""
    return make_config("train.parquet", run_dir="runs/test")


@pytest.fixture
def problems(raw: Raw) -> Callable[..., list[str]]:
    """Make the given changes, as overrides, and return every problem of the result."""

    def find(*overrides: str) -> list[str]:
        assert apply_overrides(raw, overrides) == []
        try:
            parse(raw)
        except ConfigError as error:
            return error.problems
        return []

    return find
