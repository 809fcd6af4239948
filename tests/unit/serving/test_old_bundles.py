"""A bundle that an older version wrote says the same with this one: see ``tests/old_bundles/make.py``."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from torchrec_mtl.serving.predictor import Predictor

ARCHIVES = sorted((Path(__file__).parents[2] / "old_bundles").glob("*.zip"))


def test_there_is_an_old_bundle():
    assert ARCHIVES


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.stem)
def test_an_old_bundle_says_what_it_said(archive: Path, tmp_path: Path):
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    rows = pq.read_table(tmp_path / "few.parquet")
    for name, expected in json.loads((tmp_path / "expected.json").read_text()).items():
        found = Predictor.load(tmp_path / name)(rows)
        assert found.keys() == expected.keys()
        for task, values in expected.items():
            np.testing.assert_allclose(found[task], values, rtol=1e-4, atol=1e-5)
