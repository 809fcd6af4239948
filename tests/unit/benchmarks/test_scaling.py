"""The scaling benchmark: its figures and counts are right, and every part prints its table."""

import json
import re

import numpy as np
import pytest
import torch

from benchmarks import machine_limits, measured, scaling, scaling_profile, scaling_start
from benchmarks.measured import Aim, Figure, Spread
from benchmarks.scaling_growth import Length
from benchmarks.scaling_memory import table_mebibytes
from benchmarks.scaling_ranks import scale_ranks
from benchmarks.scaling_workload import DIM, FIELDS, HEADS, Workload, stepper
from torchrec_mtl.training.distributed import process_group


@pytest.fixture
def run_script(capsys):
    threads = torch.get_num_threads()

    def run(*words):
        scaling.main(["--repeats", "1", "--head", "shared_bottom", "--batch-size", "64", "--samples", "128", *words])
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def test_a_ratio_is_taken_within_each_repeat():
    # The machine is three times slower in the second repeat: the ratio does not see it.
    assert measured.ratios([2.0, 6.0, 2.0], [1.0, 3.0, 1.0]) == Spread(2.0, 2.0, 2.0)


def test_sides_take_turns_and_the_first_round_is_forgotten():
    calls = []

    def side(name):
        return lambda: calls.append(name) or float(len(calls))

    found = measured.interleave({"a": side("a"), "b": side("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert measured.interleave({"c": side("c")}, 1, warm_up=False) == {"c": [7.0]}


@pytest.mark.parametrize(
    ("aim", "met"),
    [
        (Aim("at most", 1.3), False),
        (Aim("at least", 1.3), True),
        (Aim("at most", 6.0, of="value"), True),
        (Aim("at least", 6.0, of="value"), False),
    ],
)
def test_an_aim_is_for_the_ratio_or_for_the_value(aim, met):
    figure = Figure("case", Spread.of([5.0]), "s", Spread.of([1.5]), "base", aim)
    assert figure.met is met
    assert ("**not met**" in measured.as_markdown("title", [figure])) is not met


def test_a_table_leaves_out_what_is_empty_everywhere():
    text = measured.as_markdown("title", [Figure("case", Spread.of([1.0, 2.0, 4.0]), "ms")])
    assert text.splitlines()[-3:] == ["| case | measured |", "| --- | --- |", "| case | 2 (1 to 4) ms |"]


def test_json_lines_are_appended_with_their_setting(tmp_path):
    figure = Figure("case", Spread.of([5.0]), "s", Spread.of([1.5]), "base", Aim("at most", 2.0))
    for _ in range(2):
        measured.append(tmp_path / "new" / "out.jsonl", "part", [figure], {"seed": 3})
    lines = [json.loads(line) for line in (tmp_path / "new" / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert lines[0]["met"] is True
    assert lines[0]["setting"] == {"seed": 3}
    assert lines[0]["ratio"]["median"] == 1.5


def test_touched_bytes_count_lookups_once_and_different_rows_twice():
    ids = [torch.tensor([1, 2, 2]), torch.tensor([2, 7])]
    lookups, rows, dim = 5, 3, 8
    assert machine_limits.touched_bytes(ids, dim) == lookups * dim * 4 + rows * 2 * (dim * 4 + 4)


def test_tables_of_each_task_are_counted():
    found = {}
    for head in ("shared_bottom", "single_task"):
        workload = Workload(head=head, rows=50, tables=2, tasks=3, batch=64)
        with process_group("cpu") as device:
            session = workload.open(device)
            found[head] = machine_limits.count_table_bytes(session.config, workload.batches(session, 1)[0])
    assert found["single_task"] == 3 * found["shared_bottom"]


def test_shares_of_a_profile_add_up_to_one():
    times = {
        "aten::baddbmm": 3.0,
        "fbgemm::split_embedding_backward_codegen_rowwise_adagrad_cpu": 2.0,
        "fbgemm::split_embedding_codegen_forward_cpu": 1.0,
        "aten::cat": 0.5,
        "aten::mul": 0.5,
        "aten::_fused_adam_": 0.25,
        "## backward ##": 1.0,
    }
    shares = scaling_profile.split(times, wall=10.0)
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares["matrix products"] == pytest.approx(0.3)
    assert shares["embedding backward and its optimizer"] == pytest.approx(0.2)
    assert shares["embedding lookup"] == pytest.approx(0.1)
    assert shares["copies and concatenation"] == pytest.approx(0.05)
    assert shares["elementwise, norms, and reductions"] == pytest.approx(0.05)
    assert shares["dense optimizer"] == pytest.approx(0.025)
    assert shares[scaling_profile.OTHER] == pytest.approx(0.275)  # what is named, and what nothing accounts for


def test_imports_are_added_up_by_package():
    log = (
        "import time: self [us] | cumulative | imported package\n"
        "import time:       500 |        500 |     torch.nn.modules\n"
        "import time:      1500 |       2000 |   torch\n"
        "a warning\n"
        "import time:      1000 |       3000 | scipy.stats\n"
    )
    assert scaling_start.import_seconds(log) == pytest.approx({"torch": 0.002, "scipy": 0.001})


def test_memory_of_tables_is_what_a_session_allocates():
    workload = Workload(head="shared_bottom", rows=500, tables=4, batch=64)
    with process_group("cpu") as device:
        state = workload.open(device).tensors()
    weights = [v for k, v in state["model"].items() if ".embedding_bags." in k]
    sums = [v for k, values in state["optim"]["state"].items() if ".embedding_bags." in k for v in values.values()]
    local = [shard.tensor for tensor in weights + sums for shard in tensor.local_shards()]
    assert sum(t.numel() * t.element_size() for t in local) / 2**20 == pytest.approx(table_mebibytes(workload))


def test_batches_hold_ids_of_all_rows_and_labels_of_all_tasks():
    workload = Workload(head="shared_bottom", rows=7, tables=3, tasks=5, batch=64)
    with process_group("cpu") as device:
        session = workload.open(device)
        batches = workload.batches(session, 2)
        assert stepper(session, batches)() > 0
        flops = machine_limits.count_flops(session, batches[0])
    assert [b.labels.shape for b in batches] == [(64, 5)] * 2
    assert len(batches[0].sparse.keys()) == FIELDS
    assert set(batches[0].sparse.values().tolist()) == set(range(7))
    assert np.array_equal(batches[1].labels[:, 0], batches[1].labels[:, 2])
    assert not np.array_equal(batches[0].labels[:, 0], batches[0].labels[:, 1])
    inputs = FIELDS * DIM + 5
    first_layer = 2 * 64 * inputs * 256
    assert flops > 3 * first_layer  # forward, and backward for weights and inputs


def test_a_run_prints_machine_and_seed_and_a_line_a_case(run_script, tmp_path):
    out = tmp_path / "out.jsonl"
    sizes = ["--rows", "100", "1000", "--tables", "2", "--tasks", "2", "4", "--batches", "64", "128"]
    printed = run_script(
        "--only", "rows", "tasks", "batch", *sizes, "--heads", "shared_bottom", "--seed", "4", "--out", str(out)
    )  # fmt: skip
    assert "seed 4" in printed
    assert f"torch {torch.__version__}" in printed
    cases = re.findall(r"^\| (.+?) \| ", printed, re.MULTILINE)
    for case in ("1,000 rows a table", "shared_bottom, 4 tasks", "batch 128", "GEMM peak", "bandwidth"):
        assert case in cases
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["case"] for line in lines if line["aim"]] == [
        "1,000 rows a table",
        "shared_bottom, 4 tasks",
        "batch 128",
    ]
    assert all(line["setting"]["seed"] == 4 for line in lines)


def test_a_head_that_refuses_is_named_with_the_reason(run_script, monkeypatch):
    monkeypatch.setitem(HEADS, "single_task", {"type": "single_task", "experts": 3})
    printed = run_script("--only", "tasks", "--tasks", "2", "--heads", "single_task", "shared_bottom")
    assert "### tasks: single_task\n\nnot measured, it refuses such tasks or features: " in printed
    assert "experts" in printed
    assert "| shared_bottom, 2 tasks |" in printed


def test_a_profile_names_kinds_and_operators(run_script):
    printed = run_script("--only", "profile", "--profile-steps", "2", "--profile-tasks", "2")
    assert re.search(r"^\| matrix products \| .* ms \| .* \| the step \|", printed, re.MULTILINE)
    assert re.search(r"^\| aten::mm \| .* ms \| .* \| the step \| .* calls a step \|", printed, re.MULTILINE)


def test_the_reader_is_held_against_the_model_and_a_scan(run_script):
    printed = run_script("--only", "reader", "--file-rows", "4000")
    assert re.search(r"^\| reader: .* rows/s \| .* \| shared_bottom in memory \| at least 4 \|", printed, re.MULTILINE)
    assert re.search(r"^\| pyarrow scan of its columns \| .* rows/s \| .* \| reader \|", printed, re.MULTILINE)


@pytest.mark.distributed
def test_two_ranks_are_held_against_one():
    workload = Workload(head="shared_bottom", rows=100, batch=64)
    figures = {figure.case: figure for figure in scale_ranks(workload, Length(1, 192))}
    assert figures["1 rank, global batch 64"].ratio is None
    assert figures["1 rank, global batch 128"].aim is None
    for case in ("2 ranks, global batch 64", "2 ranks, global batch 128"):
        assert figures[case].against == "1 rank, global batch 64"
        assert figures[case].aim == Aim("at least", 1.5)


def test_every_part_runs_by_default():
    assert scaling.parse_options([]).only == list(scaling.PARTS)
