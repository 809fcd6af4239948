"""examples/multinode: its commands as they stand, and its files as those who get them would read them."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

FOLDER = "examples/multinode"


def readme(repository):
    return (repository / FOLDER / "README.md").read_text()


def blocks(repository, language):
    return re.findall(rf"```{language}\n(.*?)```", readme(repository), flags=re.DOTALL)


def commands(repository):
    return [line[2:] for block in blocks(repository, "console") for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture
def place(repository, tmp_path):
    """A folder like the repository's root, whose runs are this test's."""
    for name in ("examples", "components", "data", "docker", ".torchxconfig"):
        (tmp_path / name).symlink_to(repository / name)
    return tmp_path


def free_port():
    with socket.socket() as one:
        one.bind(("", 0))
        return one.getsockname()[1]


def run(command, cwd, **environment):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, **environment}
    return subprocess.run(
        command, shell=True, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=240
    )


def test_dry_runs_of_all_schedulers_are_shown_and_work(repository, place):
    dry = [command for command in commands(repository) if "--dryrun" in command]
    asked = [re.search(r"-s (\w+)", command) for command in dry]
    assert {match[1] if match else "local_cwd" for match in asked} == {
        "local_cwd", "slurm", "kubernetes", "local_docker"
    }  # fmt: skip
    for command in dry:
        if "-s kubernetes" in command:
            pytest.importorskip("kubernetes", reason="needs `pip install 'kubernetes<37'`")
        done = run(command, place)
        assert done.returncode == 0, f"{command}\n{done.stderr[-3000:]}"
        assert "=== SCHEDULER REQUEST ===" in done.stdout
        assert "torchrun --max_restarts 3" in " ".join(done.stdout.replace("'", "").split())


@pytest.mark.slow
@pytest.mark.distributed
def test_two_nodes_on_one_machine_train(repository, place):
    if not (repository / "data" / "cdnow" / "test.parquet").exists():
        pytest.skip("data/cdnow is missing: `make test` makes it, or `python examples/cdnow/prepare.py`")
    for command in commands(repository):
        if "--dryrun" not in command:
            done = run(command.replace("--nodes 2", f"--nodes 2 --rdzv_port {free_port()}"), place)
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert (place / "runs" / "two-nodes" / "metrics.json").is_file()


def test_the_commands_of_two_hosts_are_those_of_torchrun(repository):
    from torch.distributed.run import parse_args

    (block,) = [b for b in blocks(repository, "sh") if "torchrun" in b]
    command = shlex.split(block.replace("\\\n", " ").split("torchrun ", 1)[1])
    args = parse_args(command)
    assert (args.nnodes, args.max_restarts, args.training_script) == ("1:2", 3, "torchrec_mtl")
    for name in re.findall(r"`(--[\w-]+)", readme(repository).split("## Two hosts by hand")[1].split("\n## ")[0]):
        parse_args([name, "a=1", "script"])


def test_the_script_of_slurm_starts_an_agent_a_node(repository, place):
    (place / "bin").mkdir()
    for name, body in (("srun", 'printf "%s\\n" "$@" "OMP=$OMP_NUM_THREADS"'), ("scontrol", "printf 'n1\\nn2\\n'")):
        (place / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (place / "bin" / name).chmod(0o755)
    (command,) = [b for b in blocks(repository, "sh") if "sbatch" in b]
    slurm = {
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "8",
    }
    path = f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command.replace("sbatch ", "bash ", 1), shell=True, cwd=place, env={**os.environ, **slurm, "PATH": path},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    words = done.stdout.splitlines()
    for wanted in ("--no-kill", "--kill-on-bad-exit=0", "--nnodes=1:2", "--nproc-per-node=4", "--rdzv-id=7", "OMP=2",
                   "--rdzv-endpoint=n1:29500", "--max-restarts=3"):  # fmt: skip
        assert wanted in words
    assert words[-4:-1] == ["train", "examples/cdnow/htlnet.yaml", "run_dir=runs/slurm"]
    script = (repository / FOLDER / "slurm.sbatch").read_text()
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    before = script.split("set -euo")[0]
    assert all(line in before for line in directives)  # Slurm reads none after the first command
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1", "#SBATCH --no-kill"} <= set(directives)


def test_the_claims_of_kubernetes_are_those_that_the_command_mounts(repository):
    *claims, job = yaml.safe_load_all((repository / FOLDER / "kubernetes.yaml").read_text())
    names = {claim["metadata"]["name"] for claim in claims}
    (command,) = [c for c in commands(repository) if "-s kubernetes" in c]
    mounted = dict(re.findall(r"type=volume,src=([\w-]+),dst=([\w/]+)", command))
    assert set(mounted) == names
    pod = job["spec"]["template"]["spec"]
    volumes = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"]}
    (container,) = pod["containers"]
    assert {volumes[m["name"]]: m["mountPath"] for m in container["volumeMounts"]} == mounted
    user = re.search(r"^USER (\d+):(\d+)$", (repository / "docker" / "Dockerfile.cpu").read_text(), re.MULTILINE)
    security = pod["securityContext"]
    assert (security["runAsUser"], security["fsGroup"]) == (int(user[1]), int(user[2]))
    assert (repository / shlex.split(container["command"][2])[1]).is_file()


def test_links_lead_somewhere(repository):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", readme(repository)):
        assert (repository / FOLDER / target).exists(), target


def test_options_of_the_components_are_named_with_their_defaults(repository):
    from components.train import train

    for name in ("max_restarts", "max_retries"):
        assert f"`--{name} {train.__kwdefaults__[name]}`" in readme(repository)
