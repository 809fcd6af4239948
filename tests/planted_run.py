"""A small run on planted data, for the commands that train many: ``run.yaml`` and its three files."""

import pyarrow.parquet as pq
import yaml

from torchrec_mtl.data.synthetic import make_config, make_table


def write_planted_run(folder):
    """Write ``run.yaml``, and the training, validation, and test rows that it names."""
    for name, rows, seed in (("train", 640, 0), ("validation", 400, 1), ("test", 400, 2)):
        pq.write_table(make_table(rows, seed=seed), folder / f"{name}.parquet", row_group_size=160)
    raw = make_config(str(folder / "train.parquet"), run_dir=str(folder / "run"))
    raw["data"] |= {"eval": str(folder / "validation.parquet"), "test": str(folder / "test.parquet")}
    raw["head"] = {"type": "shared_bottom", "shared": [16], "tower": [8]}
    (folder / "run.yaml").write_text(yaml.safe_dump(raw))
