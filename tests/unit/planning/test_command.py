"""The command: its options, errors in one line, exit status, files."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.unit.planning.configs import raw
from torchrec_mtl.cli import app
from torchrec_mtl.planning.command import read_cluster, read_growth
from torchrec_mtl.planning.report import from_json
from torchrec_mtl.planning.result import Cluster

GPU = ("--gpus", 2, "--hbm-gib", 16)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw("cpu")))
    return path


def plan(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_a_plan_is_printed_and_written(file: Path, tmp_path: Path) -> None:
    as_json, picture = tmp_path / "plan.json", tmp_path / "plan.png"
    done = plan(file, *GPU, "--nodes", 2, "--growth", "1,2", "--json", as_json, "--plot", picture)
    assert done.exit_code == 0, done.output
    assert f"{file} on 2 nodes x 2 GPUs of 16 GiB, 256 GiB host memory a node" in done.stdout
    report = from_json(as_json.read_text())
    assert report.plan is not None
    assert [len(report.plan.ranks), *(g.nodes for g in report.growth)] == [4, 1, 2]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_json_can_stand_alone_on_standard_output(file: Path) -> None:
    done = plan(file, "--device", "cpu", "--gpus", 1, "--json", "-")
    assert json.loads(done.stdout)["plan"]["cluster"]["device"] == "cpu"


def test_a_gpu_s_config_is_planned_without_one(file: Path) -> None:
    made = raw("auto", optim={"sparse": {"type": "adam"}})
    made["features"]["tables"][0]["sharding"] = ["row_wise"]
    file.write_text(yaml.safe_dump(made))
    done = plan(file, *GPU, "data.batch_size=128")
    assert done.exit_code == 0, done.output
    assert "row_wise, fused" in done.stdout


def test_what_does_not_fit_ends_with_status_1(file: Path) -> None:
    large = "features.tables.user.rows=2_000_000_000"
    done = plan(file, "--device", "cpu", "--gpus", 1, "--ddr-gib", 40, large)
    assert done.exit_code == 1
    assert "the cheapest that fits: 80 GiB a node of host memory" in done.stdout
    done = plan(file, "--device", "cpu", "--gpus", 1, "--ddr-gib", 40, large, "--no-changes")
    assert done.exit_code == 1
    assert "user: its largest part needs" in done.stdout
    assert "changes tried" not in done.stdout


def test_ranks_beyond_the_streams_are_noted(file: Path) -> None:
    done = plan(file, "--nodes", 8, *GPU)
    assert "note: 16 ranks do not divide data.streams = 8; train with data.streams=16" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--nodes", 0), "--nodes: expected 1 or more machines (found 0)"),
        (("--gpus", -2), "--gpus: expected 1 or more GPUs a node, or ranks a node on the CPU (found -2)"),
        (("--hbm-gib", 0), "--hbm-gib: expected more than 0 GiB (found 0)"),
        (("--hbm-gib", "nan"), "--hbm-gib: expected more than 0 GiB (found nan)"),
        (("--ddr-gib", -1), "--ddr-gib: expected 0 or more GiB of host memory a node (found -1)"),
        (("--device", "cud"), "--device: expected cuda or cpu (found 'cud'). Did you mean 'cuda'?"),
        (("--device", "cpu"), "--hbm-gib: the CPU has none (found 16)"),
        (("--growth", "1,two"), "--growth: expected numbers of nodes, such as 1,2,4,8 (found '1,two')"),
        (("--growth", ""), "--growth: expected numbers of nodes"),
        (("--json", "nowhere/plan.json"), "--json: there is no folder nowhere"),
        (("--plot", "nowhere/plan.png"), "--plot: there is no folder nowhere"),
        (("--nodes", 3), "data.batch_size: the global batch of 64 cannot be shared by 6 ranks"),
        (("train.device=cpu",), "train.device=cpu: --device says what the plan is for; leave it out"),
        (("head.towr=[8]",), "towr"),
    ],
)
def test_mistakes_are_one_line_that_names_the_option(file: Path, arguments: tuple[Any, ...], message: str) -> None:
    done = plan(file, *GPU, *arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_gpu_s_memory_must_be_named(file: Path) -> None:
    done = plan(file)
    assert "--hbm-gib: is missing; give the memory of one GPU in GiB, such as --hbm-gib 80" in done.stderr


def test_a_config_that_is_not_there_is_told_as_elsewhere(file: Path) -> None:
    done = plan(file.with_name("rum.yaml"), *GPU)
    assert done.exit_code == 1
    assert "no such file. Did you mean" in done.stderr


def test_host_memory_is_of_a_node_and_shared_by_its_ranks() -> None:
    cluster = read_cluster(nodes=2, gpus=8, device="cuda", hbm_gib=80, ddr_gib=1024)
    assert (cluster.ranks, cluster.ddr_bytes, cluster.hbm_bytes) == (16, 128 * 1024**3, 80 * 1024**3)
    assert read_cluster(nodes=1, gpus=4, device="cpu") == Cluster(1, 4, "cpu", None, 512.0)


def test_growth_is_read_in_order_without_repeats() -> None:
    assert read_growth("8, 1 2,8") == (1, 2, 8)
    assert read_growth(None) == ()
