import numpy as np
import pytest

from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.columns import config_columns, schema_problems
from torchrec_mtl.data.synthetic import make_config, make_table


def test_same_seed_same_rows_and_other_seed_other_rows():
    assert make_table(50, seed=1, nulls=True).equals(make_table(50, seed=1, nulls=True))
    assert not make_table(50, seed=1).equals(make_table(50, seed=2))


@pytest.mark.parametrize("space", [False, True])
def test_config_fits_the_table(space):
    config = RunConfig.model_validate(make_config("t.parquet", run_dir="r", space=space))
    columns = config_columns(config.data, config.features, config.tasks)
    assert schema_problems([("t", make_table(10, seed=0).schema)], columns) == []


def test_tasks_follow_one_another_and_can_be_learned():
    table = make_table(20_000, seed=0).to_pandas()
    assert 0.2 < table.click.mean() < 0.8
    assert table.click[table.long_view == 1].all()
    assert ((table.watch_time > 0) == (table.click == 1)).all()
    pairs = table.groupby(["user_id", "item_id"]).click.mean()
    assert pairs.std() > 1.2 * np.sqrt(0.25 / (len(table) / len(pairs)))  # the pair decides more than chance would
    watched = table.explode("watched").groupby("user_id").watched
    assert watched.agg(lambda items: items.value_counts(normalize=True).max()).mean() > 5 / 60  # a taste, not chance
