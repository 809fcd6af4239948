import pyarrow.parquet as pq
import pytest
import yaml

from tests.unit.tuning.studies import study_in, write_space
from torchrec_mtl.data.synthetic import make_config, make_table


@pytest.fixture
def folder(tmp_path):
    """``run.yaml``, its data, and ``space.yaml``."""
    for name, rows, seed in (("train", 640, 0), ("validation", 400, 1), ("test", 400, 2)):
        pq.write_table(make_table(rows, seed=seed), tmp_path / f"{name}.parquet", row_group_size=160)
    raw = make_config(str(tmp_path / "train.parquet"), run_dir=str(tmp_path / "run"))
    raw["data"] |= {"eval": str(tmp_path / "validation.parquet"), "test": str(tmp_path / "test.parquet")}
    raw["head"] = {"type": "shared_bottom", "shared": [16], "tower": [8]}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    write_space(tmp_path)
    return tmp_path


@pytest.fixture
def study(folder):
    return study_in(folder)
