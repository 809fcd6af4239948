"""What each scheduler of TorchX would be handed: rendered as by `torchx run --dryrun`, read back, and asked for."""

import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchx.runner import get_runner

# TorchX's note on Volcano of before 2022.
pytestmark = pytest.mark.filterwarnings("ignore:(?s).*does NOT support retries correctly:UserWarning")

ROOT = Path(__file__).parents[3]
COMPONENT = f"{ROOT / 'components' / 'train.py'}:htlnet"
OPTIONS = [
    "--nodes", "2", "--nproc", "4", "--cpu", "8", "--gpu", "4", "--memMB", "32000", "--max_restarts", "2",
    "--max_retries", "1", "--rdzv_port", "29511", "--env", "NCCL_SOCKET_IFNAME=eth0", "--image", "registry/mtl:1",
    "--mounts", "type=bind,src=/nfs/runs,dst=/workspace/runs", "train.epochs=1", "run_dir=runs/a b",
]  # fmt: skip
SCHEDULERS = ["local_cwd", "slurm", "local_docker", "kubernetes"]
# Where the nodes meet: how each scheduler tells a replica of the first one. An empty value means this host.
MEETING = {
    "local_cwd": ["TORCHX_RANK0_HOST"] * 2,
    "slurm": ["SLURM_JOB_NODELIST_HET_GROUP_0"] * 2,
    "local_docker": ["TORCHX_RANK0_HOST"] * 2,
    # Names that Volcano's plugin `env` makes from that of the task: train-0.
    "kubernetes": ["TORCHX_RANK0_HOST", "VC_TRAIN_0_HOSTS"],
}


@dataclass(frozen=True)
class Replica:
    """A node as one scheduler would start it; `text` is for bash, `whole` all that the scheduler is told of it."""

    text: str
    env: dict[str, str]
    whole: Any

    @property
    def command(self) -> list[str]:
        """Words of torchrun's command, which bash runs."""
        found = shlex.split(self.text)
        return found[found.index("torchrun") :]


@pytest.fixture
def rendered(tmp_path, monkeypatch):
    """Scheduler, arguments -> replicas and the printed request."""
    config = tmp_path / "examples" / "cdnow" / "htlnet.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("data: {streams: 8}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)

    def render(scheduler: str, args: list[str] = OPTIONS) -> tuple[list[Replica], str]:
        if scheduler == "kubernetes":
            pytest.importorskip("kubernetes", reason="needs `pip install 'kubernetes<37'`")
        with get_runner() as runner:
            info = runner.dryrun_component(COMPONENT, args, scheduler, {"queue": "default"})
        return READERS[scheduler](info.request), str(info)

    return render


def of_local(request):
    return [Replica(of_bash(r.args), r.env, r) for r in request.role_params["train"]]


def of_slurm(request):
    return [Replica(of_bash([r.entrypoint, *r.args]), r.env, r) for r in request.replicas.values()]


def of_docker(request):
    return [Replica(of_bash(c.command), c.kwargs["environment"], c) for c in request.containers]


def of_kubernetes(request):
    tasks = yaml.safe_load(str(request))["spec"]["tasks"]
    containers = [task["template"]["spec"]["containers"][0] for task in tasks]
    env = [{e["name"]: e["value"] for e in container["env"]} for container in containers]
    return [Replica(of_bash(c["command"]), e, task) for c, e, task in zip(containers, env, tasks)]


READERS = {"local_cwd": of_local, "slurm": of_slurm, "local_docker": of_docker, "kubernetes": of_kubernetes}


def of_bash(command: list[str]) -> str:
    assert command[:2] == ["bash", "-c"]
    (text,) = command[2:]
    assert "$$" not in text
    return text


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_replica_runs_the_same_agent(rendered, scheduler):
    replicas, _ = rendered(scheduler)
    assert len(replicas) == 2
    for replica, variable in zip(replicas, MEETING[scheduler], strict=True):
        command = replica.command
        assert option(command, "--nnodes") == "2"
        assert option(command, "--nproc_per_node") == "4"
        assert option(command, "--max_restarts") == "2"
        assert option(command, "--rdzv_backend") == "c10d"
        assert option(command, "--rdzv_endpoint") == f"${{{variable}:=localhost}}:29511"
        module = command[command.index("-m") :]
        assert module == [
            "-m", "torchrec_mtl", "train", "examples/cdnow/htlnet.yaml", "train.epochs=1", "run_dir=runs/a b"
        ]  # fmt: skip
        assert replica.env["OMP_NUM_THREADS"] == "2"
        assert replica.env["NCCL_SOCKET_IFNAME"] == "eth0"
        assert replica.env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"
    first, second = (option(replica.command, "--rdzv_id") for replica in replicas)
    assert first == second


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_range_of_nodes_starts_the_most(rendered, scheduler):
    replicas, _ = rendered(scheduler, ["--nodes", "1:2", "--nproc", "4", "--rdzv_conf", "last_call_timeout=60"])
    assert [option(r.command, "--nnodes") for r in replicas] == ["1:2"] * 2
    assert [option(r.command, "--rdzv_conf") for r in replicas] == ["last_call_timeout=60"] * 2
    assert [option(r.command, "--max_restarts") for r in replicas] == ["3"] * 2


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_node_meets_nobody(rendered, scheduler):
    ((replica,), _) = rendered(scheduler, [])
    assert option(replica.command, "--rdzv_endpoint") == "localhost:0"
    assert replica.env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] == "1"  # else its restarts find dead addresses


def test_local_nodes_run_here(rendered, tmp_path):
    replicas, _ = rendered("local_cwd")
    assert [r.whole.cwd for r in replicas] == [str(tmp_path)] * 2
    assert [r.env["TORCHX_RANK0_HOST"] for r in replicas] == ["localhost"] * 2


def test_slurm_is_asked_for_two_nodes_with_their_share(rendered):
    _, script = rendered("slurm")
    requests = [line for line in script.splitlines() if line.startswith("#SBATCH --")]
    assert len(requests) == 2
    for i, request in enumerate(requests):
        for wanted in (f"--job-name=train-{i}", "--ntasks-per-node=1", "--cpus-per-task=8", "--mem=32000",
                       "--gpus-per-task=4", "--requeue"):  # fmt: skip
            assert wanted in request.split()
    assert script.count("#SBATCH hetjob") == 1  # each its own node
    assert "export TORCHX_MAX_RETRIES=1" in script
    # One step starts both agents, and the id of the meeting is the job's.
    command = script[script.index("\nsrun ") :].split("\nexitcode=")[0]
    assert command.count(" bash -c ") == 2
    assert command.count("""--rdzv_id '"'"''"$SLURM_JOB_ID"''"'"' """) == 2


def test_docker_gets_two_containers_that_know_the_first(rendered):
    replicas, _ = rendered("local_docker")
    names = [r.whole.kwargs["name"] for r in replicas]
    assert [name[-8:] for name in names] == ["-train-0", "-train-1"]
    for replica, name in zip(replicas, names):
        assert replica.env["TORCHX_RANK0_HOST"] == names[0]
        found = replica.whole.kwargs
        assert (replica.whole.image, found["hostname"], found["network"]) == ("registry/mtl:1", name, "torchx")
        assert (found["nano_cpus"], found["mem_limit"]) == (8_000_000_000, "32000m")
        assert found["device_requests"][0].count == 4
        assert found["restart_policy"] == {"Name": "on-failure", "MaximumRetryCount": 1}
        (mount,) = found["mounts"]
        assert (mount["Source"], mount["Target"], mount["Type"]) == ("/nfs/runs", "/workspace/runs", "bind")


def test_kubernetes_gets_a_job_of_volcano(rendered):
    replicas, text = rendered("kubernetes")
    job = yaml.safe_load(text)
    assert (job["apiVersion"], job["kind"]) == ("batch.volcano.sh/v1alpha1", "Job")
    assert (job["spec"]["schedulerName"], job["spec"]["queue"]) == ("volcano", "default")
    assert {"env", "svc"} <= set(job["spec"]["plugins"])  # the names and addresses of the tasks
    assert job["spec"]["maxRetry"] == 1
    for i, replica in enumerate(replicas):
        task = replica.whole
        assert (task["name"], task["replicas"], task["minAvailable"], task["maxRetry"]) == (f"train-{i}", 1, 1, 1)
        assert {p["action"] for p in task["policies"]} == {"RestartJob"}
        pod = task["template"]["spec"]
        assert pod["restartPolicy"] == "Never"
        (container,) = pod["containers"]
        assert container["image"] == "registry/mtl:1"
        assert container["ports"] == [{"containerPort": 29511, "name": "c10d"}]
        limits = {"cpu": "8000m", "memory": "32000M", "nvidia.com/gpu": "4"}
        assert container["resources"]["limits"] == limits
        mounted = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        volumes = {v["name"]: v for v in pod["volumes"]}
        assert volumes[mounted["/workspace/runs"]]["hostPath"]["path"] == "/nfs/runs"
        assert "emptyDir" in volumes[mounted["/dev/shm"]]


def test_kubernetes_may_begin_with_the_fewest_nodes(rendered):
    replicas, _ = rendered("kubernetes", ["--nodes", "1:2"])
    assert [r.whole["minAvailable"] for r in replicas] == [1, 0]


def test_kubernetes_mounts_claims(rendered):
    mounts = "type=volume,src=mtl-runs,dst=/workspace/runs"
    replicas, _ = rendered("kubernetes", ["--nodes", "2", "--mounts", mounts])
    for replica in replicas:
        claims = [v["persistentVolumeClaim"]["claimName"] for v in replica.whole["template"]["spec"]["volumes"][1:]]
        assert claims == ["mtl-runs"]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("host", ["node-7", ""])
def test_the_shell_fills_in_where_nodes_meet(rendered, tmp_path, scheduler, host):
    (_, replica), _ = rendered(scheduler)
    torchrun = tmp_path / "torchrun"
    torchrun.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    torchrun.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", MEETING[scheduler][1]: host}
    command = replica.text[replica.text.index("exec torchrun") :]  # after this environment's torchrun is put on PATH
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=True, timeout=20)
    printed = done.stdout.splitlines()
    assert option(printed, "--rdzv_endpoint") == f"{host or 'localhost'}:29511"
    assert printed[-1] == "run_dir=runs/a b"
