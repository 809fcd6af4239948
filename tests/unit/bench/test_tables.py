import pytest

from tests.unit.bench.suites import an_outcome, open_suite
from torchrec_mtl.bench.results import make_report
from torchrec_mtl.bench.statistics import holm, paired_difference
from torchrec_mtl.bench.tables import best_baseline, failures, main_table, more_table, settings_table, transfer_table
from torchrec_mtl.bench.tuning import Outcome


@pytest.fixture
def made(folder):
    """Single task is the better baseline on validation rows, the worse on test rows."""
    suite, pairs = open_suite(folder)
    suite = suite.model_copy(update={"seeds": (0, 1, 2)})
    costs = {"dense_parameters": 1234567, "table_parameters": 10, "samples_per_s": 2000.0, "peak_memory_mib": 400.0}
    return suite, [
        an_outcome(pairs["single_task"], [0.70, 0.71, 0.72], score=0.9, **costs),
        an_outcome(pairs["shared_bottom"], [0.80, 0.82, 0.81], score=0.8, **costs),
        an_outcome(pairs["htlnet"], [0.60, 0.61, None], score=0.7, **costs),
    ]


def by_model(table):
    return {row[0].text: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_the_best_baseline_is_chosen_on_validation_rows(made):
    assert best_baseline(made[1]).pair.model.name == "single_task"


def test_a_system_is_never_the_baseline(made):
    outcomes = made[1]
    outcomes[2].best = outcomes[0].best
    assert best_baseline(outcomes[2:]) is None


def test_means_intervals_and_paired_differences_are_shown(made):
    shown = by_model(main_table(*made))["shared_bottom"]["click auc"]
    difference = paired_difference([0.80, 0.82, 0.81], [0.70, 0.71, 0.72])
    assert shown.text == "0.8100 ± 0.0248"
    assert shown.small.startswith(f"+{difference.mean:.4f} ± {difference.half:.4f}, p ")


def test_p_values_are_corrected_over_the_whole_table(made):
    table = by_model(main_table(*made))
    ps = []
    for values in ([0.80, 0.82, 0.81], [0.60, 0.61]):
        base = [0.70, 0.71, 0.72][: len(values)]
        for scale, shift in ((1, 0), (1, 0), (0.5, 0), (-1, 2)):  # click, long_view, gini, nrmse of the made-up rows
            ours, theirs = ([scale * v + shift for v in vs] for vs in (values, base))
            ps.append(paired_difference(ours, theirs).p)
    corrected = holm(ps)
    assert table["shared_bottom"]["click auc"].small.endswith(f"p {corrected[0]:.3f}")


def test_difference_marks_know_which_way_is_better(made):
    cells = by_model(main_table(*made))["shared_bottom"]
    assert cells["click auc"].mark == cells["watch_time nrmse"].mark == "better"
    assert cells["watch_time nrmse"].small.startswith("-")
    reverse = by_model(transfer_table(made[1]))["shared_bottom"]
    assert reverse["click auc"].mark == "better"


def test_costs_counts_and_failures_are_shown(made):
    cells = by_model(main_table(*made))["htlnet"]
    assert cells["seeds"].text == "2 of 3"
    assert (cells["failed"].text, cells["failed"].mark) == ("1", "failed")
    assert cells["dense parameters"].text == "1,234,567"
    assert cells["samples/s"].text == "2,000"
    assert cells["validation score"].text == "0.7000"
    assert failures(made[1]) == ["htlnet, seed, seed 2: RuntimeError: out of ideas"]


def test_a_model_that_failed_throughout_is_a_row_that_says_so(made):
    suite, outcomes = made
    outcomes[2] = an_outcome(outcomes[2].pair, [None, None, None], score=0.7)
    cells = by_model(main_table(suite, outcomes))["htlnet"]
    assert (cells["click auc"].text, cells["click auc"].mark) == ("failed", "failed")


def test_a_model_that_has_not_run_is_no_failure(made):
    suite, outcomes = made
    outcomes[2] = Outcome(outcomes[2].pair)
    cells = by_model(main_table(suite, outcomes))["htlnet"]
    assert (cells["click auc"].text, cells["trials"].text, cells["failed"].text) == ("-", "0 of 2", "0")


def test_negative_transfer_is_marked_where_the_interval_leaves_out_0_on_the_bad_side(made):
    outcomes = made[1]
    steady = an_outcome(outcomes[2].pair, [0.60, 0.61, 0.62], score=0.7)
    cells = by_model(transfer_table([outcomes[0], outcomes[1], steady]))
    assert "single_task" not in cells
    assert cells["htlnet"]["click auc"].mark == cells["htlnet"]["watch_time nrmse"].mark == "worse"
    assert cells["htlnet"]["click auc"].text == "-0.1000 ± 0.0000"
    unsure = an_outcome(outcomes[2].pair, [0.60, 0.81, 0.70], score=0.7)
    assert by_model(transfer_table([outcomes[0], unsure]))["htlnet"]["click auc"].mark == ""


def test_without_a_single_task_model_there_is_no_transfer_table(made):
    assert transfer_table(made[1][1:]) is None


def test_differences_pair_the_seeds_that_both_have(made):
    outcomes = made[1]
    outcomes[2].seeds = outcomes[2].seeds[1:2]  # seed 1 alone
    assert by_model(transfer_table(outcomes))["htlnet"]["click auc"].text == "-0.1000"


def test_undefined_metrics_are_left_empty(made):
    assert by_model(more_table(made[1]))["htlnet"]["watch_time spearman"].text == "-"


def test_settings_say_what_was_given_and_what_was_chosen(made):
    cells = by_model(settings_table(made[1]))["shared_bottom"]
    assert cells["given"].text == "train.log_every=5 head.shared=[8]"
    assert cells["chosen by tuning"].text == "as given"


def test_a_report_leaves_out_data_sets_without_runs(made):
    suite, outcomes = made
    assert make_report(suite, [Outcome(o.pair) for o in outcomes]).sections == ()
    assert [s.title for s in make_report(suite, outcomes).sections] == ["planted"]
