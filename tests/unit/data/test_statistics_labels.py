"""What the pass over the data records of regression labels, and what it refuses."""

import json

import numpy as np
import pyarrow as pa
import pytest

from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.statistics import LabelStatistics, Sample, Statistics, to_bins
from torchrec_mtl.registry import resolve

CLICK = {"name": "click", "kind": "binary", "label": "click", "loss": {"type": "bce"}}
TIME = {"name": "time", "kind": "regression", "label": "watch_time", "loss": {"type": "mse"}}


def collected(run, *paths):
    return collect(open_files([str(path) for path in paths]), run.data, run.features, run.tasks)


def loss(name, **options):
    return {"loss": resolve("loss", name).Config(**options)}


def with_columns(table, **columns):
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    return table


def as_floats(table, name):
    return table[name].to_numpy().astype(np.float32).astype(float)


def test_moments_of_target_and_logarithms_equal_numpy(config, write, planted):
    run = config(tasks=[TIME | loss("mse", transform="log1p", clip=5.0) | {"sample_weight": "importance"}])
    paths = [write("a.parquet", planted.slice(0, 1000), [300, 700]), write("b.parquet", planted.slice(1000))]
    found = collected(run, *paths).labels["time"]
    label, weight = as_floats(planted, "watch_time"), as_floats(planted, "importance")

    def moments(values, weight):
        mean = np.average(values, weights=weight)
        return mean, np.sqrt(np.average((values - mean) ** 2, weights=weight))

    positive = label > 0
    assert (found.mean, found.std) == pytest.approx(moments(label, weight), rel=1e-9)
    expected = moments(np.log1p(np.minimum(label, 5.0)), weight)
    assert (found.target_mean, found.target_std) == pytest.approx(expected, rel=1e-9)
    expected = moments(np.log(label[positive]), weight[positive])
    assert (found.log_mean, found.log_std) == pytest.approx(expected, rel=1e-9)


def test_without_a_transform_the_target_is_the_label_bit_for_bit(config, write, planted):
    found = collected(config(tasks=[TIME]), write("a.parquet", planted, [1000, 2000])).labels["time"]
    assert (found.target_mean, found.target_std) == (found.mean, found.std)


def test_bins_are_exact_and_do_not_depend_on_row_groups(config, write, planted):
    run = config(tasks=[CLICK, TIME])
    found = collected(run, write("a.parquet", planted)).labels["time"]
    other = collected(run, write("b.parquet", planted, [17, 983, 2000])).labels["time"]
    bins = {"quantiles", "shares", "bin_means"}
    assert found.model_dump(include=bins) == other.model_dump(include=bins)
    label = as_floats(planted, "watch_time")
    quantiles, shares = np.array(found.quantiles), np.array(found.shares)
    np.testing.assert_array_equal(quantiles, np.quantile(label, np.arange(257) / 256, method="inverted_cdf"))
    np.testing.assert_allclose(shares, [(label <= q).mean() for q in quantiles], rtol=1e-12)
    means = np.array(found.bin_means)
    assert shares[0] * quantiles[0] + np.diff(shares) @ means == pytest.approx(label.mean(), rel=1e-9)
    low, high = quantiles[-2:]
    assert means[-1] == pytest.approx(label[(label > low) & (label <= high)].mean(), rel=1e-9)


def test_binary_labels_have_no_bins(config, write, planted):
    click = collected(config(tasks=[CLICK, TIME]), write("a.parquet", planted)).labels["click"]
    assert click == LabelStatistics(**click.model_dump(include={"rows", "weight", "mean", "std", "positive_rate"}))


def test_files_of_older_versions_load(config, write, planted, tmp_path):
    statistics = collected(config(tasks=[TIME]), write("a.parquet", planted))
    raw = json.loads(statistics.model_dump_json())
    for name in ("target_mean", "target_std", "log_mean", "log_std", "quantiles", "shares", "bin_means"):
        del raw["labels"]["time"][name]
    (tmp_path / "old.json").write_text(json.dumps(raw))
    old = Statistics.load(tmp_path / "old.json").labels["time"]
    assert old.mean == statistics.labels["time"].mean
    assert old.quantiles == ()


def test_bins_of_few_and_of_no_values():
    assert [len(part) for part in to_bins(np.empty(0))] == [0, 0, 0]
    quantiles, shares, means = to_bins(np.array([2.0, 5.0]), num_bins=4)
    assert quantiles.tolist() == [2.0, 2.0, 2.0, 5.0, 5.0]
    assert shares.tolist() == [0.5, 0.5, 0.5, 1.0, 1.0]
    assert means.tolist() == [2.0, 2.0, 5.0, 5.0]


def test_a_sample_is_uniform_and_does_not_depend_on_blocks():
    values = np.arange(100_000.0)
    whole, parts = Sample(size=1000), Sample(size=1000)
    whole.add(values)
    for block in np.array_split(values, 173):
        parts.add(block)
    assert np.array_equal(whole.sorted(), parts.sorted())
    assert len(np.unique(whole.sorted())) == 1000
    # Three standard errors of the mean of 1,000.
    assert abs(whole.sorted().mean() - 50_000) < 3 * 100_000 / np.sqrt(12 * 1000)


def test_a_gate_leaves_the_rows_where_it_is_one(config, write, planted):
    gated = collected(config(tasks=[CLICK, TIME | {"gate": "click"}]), write("a.parquet", planted)).labels["time"]
    space = collected(config(tasks=[CLICK, TIME | {"space": "click"}]), write("a.parquet", planted)).labels["time"]
    assert gated == space
    assert gated.positive_rate == 1.0


def test_a_gate_at_odds_with_the_label_is_refused_with_counts(config, write, planted):
    click, time = planted["click"].to_numpy().copy(), planted["watch_time"].to_numpy().copy()
    ones, zeros = np.flatnonzero(click == 1), np.flatnonzero(click == 0)
    few = len(ones) // 100 + 1
    time[ones[:few]], time[zeros[:7]] = 0.0, 2.5
    table = with_columns(planted, watch_time=time)
    paths = [write("a.parquet", table.slice(0, 1500)), write("b.parquet", table.slice(1500))]
    with pytest.raises(ValueError, match="gate 'click' is 0") as error:
        collected(config(tasks=[CLICK, TIME | {"gate": "click"} | loss("gamma")]), *paths)
    message = str(error.value)
    assert "label of task 'time', column 'watch_time'" in message
    assert "7 labels other than 0 where gate 'click' is 0 (found 2.5)" in message
    assert "must be 1 wherever this one is not 0" in message
    assert f"{few} labels of 0 or below where gate 'click' is 1" in message
    assert f"Of {len(ones):,} such rows" in message


def test_a_few_zeros_behind_an_open_gate_are_counted_and_left_out(config, write, planted):
    click, time = planted["click"].to_numpy(), planted["watch_time"].to_numpy().copy()
    few = int(click.sum()) // 100
    time[np.flatnonzero(click == 1)[:few]] = 0.0
    path = write("a.parquet", with_columns(planted, watch_time=time))
    found = collected(config(tasks=[CLICK, TIME | {"gate": "click"} | loss("gamma")]), path)
    assert found.labels["time"].rows == int(click.sum()) - few
    assert list(found.tolerated.items()) == [
        ("labels of 0 or below where gate 'click' is 1 (left out of the loss of 'time')", few)
    ]


def test_rows_outside_either_task_are_not_judged_against_the_gate(config, write, planted):
    time = planted["watch_time"].to_numpy().copy()
    inside = planted["in_sample"].to_numpy() == 1
    time[~inside] = -3.0
    path = write("a.parquet", with_columns(planted, watch_time=time))
    gate = {"gate": "click"}
    outside_time = collected(config(tasks=[CLICK, TIME | gate | {"space": "in_sample"}]), path).labels["time"]
    outside_click = collected(config(tasks=[CLICK | {"space": "in_sample"}, TIME | gate]), path).labels["time"]
    assert outside_time == outside_click
    assert outside_time.rows == int((inside & (planted["click"].to_numpy() == 1)).sum())


@pytest.mark.parametrize("name", ["tweedie", "poisson", "zero_inflated_lognormal"])
def test_negative_labels_are_refused_where_the_loss_takes_none(config, write, planted, name):
    time = planted["watch_time"].to_numpy().copy()
    time[:4] = [-1.0, -2.0, -3.0, 0.0]
    path = write("a.parquet", with_columns(planted, watch_time=time))
    with pytest.raises(ValueError, match=rf"3 labels below 0, which loss '{name}' cannot take \(found -3.0 to -1.0\)"):
        collected(config(tasks=[TIME | loss(name)]), path)
    assert collected(config(tasks=[TIME]), path).rows == 3000


@pytest.mark.parametrize("name", ["gamma", "lognormal"])
def test_labels_of_zero_are_refused_where_the_loss_takes_none(config, write, planted, name):
    path, tasks = write("a.parquet", planted), [CLICK, TIME | loss(name)]
    zeros = int((planted["watch_time"].to_numpy() == 0).sum())
    with pytest.raises(ValueError, match=rf"{zeros:,} labels of 0 or below, which loss '{name}'.* Name in gate"):
        collected(config(tasks=tasks), path)
    for leave_out in ({"gate": "click"}, {"space": "click"}):
        assert collected(config(tasks=[CLICK, tasks[1] | leave_out]), path).labels["time"].positive_rate == 1.0


def test_negative_labels_under_a_logarithm_are_refused_without_a_warning(config, write, planted):
    path = write("a.parquet", with_columns(planted, watch_time=np.full(len(planted), -5.0)))
    with pytest.raises(ValueError, match="3,000 labels below 0, which loss 'huber' cannot take"):
        collected(config(tasks=[TIME | loss("huber", transform="log1p")]), path)


def test_equal_labels_are_refused_where_the_loss_tells_them_apart(config, write, planted):
    path = write("a.parquet", with_columns(planted, watch_time=np.full(len(planted), 2.5)), [1000, 2000])
    with pytest.raises(ValueError, match="all equal") as error:
        collected(config(tasks=[TIME | loss("ordinal")]), path)
    assert str(error.value) == (
        f"label of task 'time', column 'watch_time' of {path}: 3,000 labels that are all equal, of which loss "
        "'ordinal' can learn nothing (found 2.5). Take another loss, or leave the task out."
    )
    assert collected(config(tasks=[TIME]), path).labels["time"].mean == 2.5
    run = config(tasks=[TIME | loss("ordinal")])
    assert collect(open_files([str(path)]), run.data, run.features, run.tasks, training=False).rows == 3000


def test_equal_labels_are_those_that_the_loss_sees(config, write, planted):
    clicks = planted["click"].to_numpy()
    path = write("a.parquet", with_columns(planted, watch_time=np.where(clicks == 1, 2.5, 0.0)))
    collected(config(tasks=[CLICK, TIME | loss("ordinal")]), path)
    with pytest.raises(ValueError, match=f"{clicks.sum():,} labels that are all equal"):
        collected(config(tasks=[CLICK, TIME | loss("ordinal") | {"gate": "click"}]), path)
