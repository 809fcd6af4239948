import numpy as np
import pytest

from torchrec_mtl.config.load import parse
from torchrec_mtl.data.columns import config_columns, schema_problems
from torchrec_mtl.data.oracle import TASKS, make_oracle_config, make_oracle_table, oracle_auc

RELATIONS = ["funnel", "independent", "conflicting"]


def frame(num_rows=60_000, *, seed=0, **options):
    return make_oracle_table(num_rows, seed=seed, **options).to_pandas()


def test_same_seed_same_rows_and_other_seed_other_rows():
    assert make_oracle_table(50, seed=1).equals(make_oracle_table(50, seed=1))
    assert not make_oracle_table(50, seed=1).equals(make_oracle_table(50, seed=2))


@pytest.mark.parametrize("relation", RELATIONS)
def test_all_seeds_share_one_world(relation):
    one, other = (
        frame(400, seed=seed, relation=relation, rows_per_field=2, num_fields=3, num_dense=0) for seed in (0, 1)
    )
    inputs = ["f0", "f1", "f2"]
    assert (one.groupby(inputs).p_buy.first() == other.groupby(inputs).p_buy.first()).all()
    assert one.groupby(inputs).p_buy.nunique().max() == 1


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("task", TASKS)
def test_labels_have_the_probabilities_that_are_written(relation, task):
    rows = frame(relation=relation)
    groups = rows.groupby(np.floor(rows[f"p_{task}"] * 10))
    expected, share, count = groups[f"p_{task}"].mean(), groups[task].mean(), groups.size()
    assert (abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / count)).all()


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize("task", TASKS)
def test_the_oracle_is_strong_but_not_perfect(relation, task):
    table = make_oracle_table(60_000, seed=0, num_fields=8, relation=relation)
    assert 0.78 < oracle_auc(table, task) < 0.86


def test_the_oracle_ranks_better_than_a_blurred_truth():
    table = make_oracle_table(60_000, seed=0)
    noise = np.random.default_rng(0).normal(0, 0.1, table.num_rows)
    blurred = table.set_column(table.column_names.index("p_click"), "p_click", [table["p_click"].to_numpy() + noise])
    assert oracle_auc(blurred, "click") < oracle_auc(table, "click")


def test_a_funnels_buys_are_clicks():
    rows = frame(relation="funnel")
    assert rows.click[rows.buy == 1].all()
    assert (rows.p_buy < rows.p_click).all()


def test_independent_tasks_have_signals_of_their_own_and_a_funnel_shares_its_clicks():
    assert abs(frame().p_click.corr(frame().p_buy)) < 0.1
    funnel = frame(relation="funnel")
    assert (funnel.p_click == frame().p_click).all()
    assert np.allclose(funnel.p_buy, funnel.p_click * frame().p_buy)


def test_conflicting_tasks_swap_the_signals_of_independent_ones_on_half_of_the_rows():
    plain, rows = frame(), frame(relation="conflicting")
    swapped = rows.f19 < 50 / 8
    assert swapped.mean() == pytest.approx(0.5, abs=0.03)
    assert (rows.p_click == plain.p_click.where(~swapped, plain.p_buy)).all()
    assert (rows.p_buy == plain.p_buy.where(~swapped, plain.p_click)).all()


def test_ids_are_in_range_and_a_few_are_popular():
    sizes = [3, 1000, 40]
    rows = frame(num_fields=3, rows_per_field=sizes)
    for field, size in enumerate(sizes):
        ids = rows[f"f{field}"]
        assert (ids.min(), ids.max()) == (0, size - 1)
        assert (ids == 0).mean() == pytest.approx(size ** (-1 / 3), abs=0.01)
        assert (ids < size / 2).mean() == pytest.approx((-(-size // 2) / size) ** (1 / 3), abs=0.01)


@pytest.mark.parametrize("relation", RELATIONS)
def test_config_fits_the_table_and_reads_no_probability(relation):
    shape = {"rows_per_field": [5, 6, 7], "num_fields": 3, "num_dense": 2}
    table = make_oracle_table(10, seed=0, relation=relation, **shape)
    config = parse(make_oracle_config("t.parquet", run_dir="r", dim=4, **shape))
    columns = config_columns(config.data, config.features, config.tasks)
    assert schema_problems([("t", table.schema)], columns) == []
    read = {f.source for f in (*config.features.sparse, *config.features.dense)}
    assert read == set(table.column_names) - {"click", "buy", "p_click", "p_buy"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_fields": 0}, "num_fields=0"),
        ({"num_fields": 3, "rows_per_field": [4, 4]}, r"rows_per_field=\[4, 4\], num_fields=3"),
        ({"rows_per_field": 1}, "at least 2"),
    ],
)
def test_impossible_shapes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_oracle_table(10, seed=0, **options)
