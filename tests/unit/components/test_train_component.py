"""The TorchX components: what TorchX checks, what they would run, and what the user is told."""

import inspect
import shlex
from pathlib import Path

import docstring_parser
import pytest
from torchx.components.component_test_base import ComponentTestCase
from torchx.runner import get_runner
from torchx.specs import AppDef
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import ComponentValidationException, ModuleComponentsFinder, get_component

from components import train as components

ROOT = Path(__file__).parents[3]
EXAMPLES = {"dmmp": "movielens", "dtrn": "movielens", "htlnet": "cdnow", "ncs4cvr": "cdnow", "shared_bottom": "cdnow"}
NAMES = [*EXAMPLES, "train"]
TRAIN = ["--config", "mine.yaml"]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A current folder with the examples' configs, and no settings of OpenMP in the shell."""
    for name, example in EXAMPLES.items():
        config = tmp_path / "examples" / example / f"{name}.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.touch()
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def command_of(app: AppDef) -> list[str]:
    """Words of the torchrun command of an app, without what is before it."""
    role = app.roles[0]
    assert (role.entrypoint, role.args[0]) == ("bash", "-c")
    words = shlex.split(role.args[1])
    return words[words.index("torchrun") :]


@pytest.mark.parametrize("name", NAMES)
def test_torchx_accepts_the_component(name, capsys):
    case = ComponentTestCase()
    case.setUp()
    try:
        case.validate(components, name)
    finally:
        case.tearDown()
    assert "--nproc" in capsys.readouterr().out


def test_torchx_lists_the_components_and_no_helper():
    found = ModuleComponentsFinder(components, group="").find()
    assert [component.name for component in found if not component.validation_errors] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_has_help_of_its_own(name):
    function = getattr(components, name)
    help_of = {param.arg_name: param.description for param in docstring_parser.parse(function.__doc__).params}
    assert list(help_of) == list(inspect.signature(function).parameters)
    assert all(help_of.values())


@pytest.mark.parametrize(("name", "example"), EXAMPLES.items())
def test_the_bare_command_trains_the_example(repository, name, example):
    app = getattr(components, name)()
    assert app.name == name
    assert command_of(app)[-4:] == ["-m", "torchrec_mtl", "train", f"examples/{example}/{name}.yaml"]


def test_options_then_overrides_reach_the_command(repository):
    args = ["--nproc", "2", "--nodes", "3", "train.epochs=2", "run_dir=runs/a b"]
    app = materialize_appdef(components.shared_bottom, args)
    words = command_of(app)
    assert words[-3:] == ["examples/cdnow/shared_bottom.yaml", "train.epochs=2", "run_dir=runs/a b"]
    assert words[words.index("--nnodes") + 1] == "3"
    assert words[words.index("--nproc_per_node") + 1] == "2"
    assert app.roles[0].num_replicas == 3


def test_a_config_of_ones_own_is_run_as_it_is(repository):
    app = materialize_appdef(components.train, [*TRAIN, "train.seed=1"])
    assert app.name == "mine"
    assert command_of(app)[-3:] == ["train", "mine.yaml", "train.seed=1"]


def test_train_needs_a_config(capsys):
    with pytest.raises(SystemExit):
        materialize_appdef(components.train, [])
    assert "--config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train.seed=1", "--nproc", "2"], "options come before"),
        (["mine.yaml"], "an override is key.path=value; found 'mine.yaml'"),
        (["--nproc", "0"], "at least 1; found nproc 0"),
    ],
)
def test_a_wrong_command_is_explained(repository, args, message):
    with pytest.raises(ComponentValidationException, match=message):
        materialize_appdef(components.htlnet, args)


@pytest.mark.parametrize("example", ["cdnow", "movielens"])
def test_a_missing_example_is_explained(tmp_path, monkeypatch, example):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ComponentValidationException, match=rf"no examples/{example}/none\.yaml in"):
        components.train(config=f"examples/{example}/none.yaml")


@pytest.mark.parametrize(("name", "example"), EXAMPLES.items())
def test_an_example_is_found_beside_the_package(tmp_path, monkeypatch, name, example):
    if not (ROOT / "examples" / example / f"{name}.yaml").is_file():
        pytest.skip("no example config in this tree")
    monkeypatch.chdir(tmp_path)
    found = Path(command_of(getattr(components, name)())[-1])
    assert found.parts[-3:] == ("examples", example, f"{name}.yaml")
    assert found.is_file()


@pytest.mark.parametrize(("nproc", "threads"), [(1, "8"), (2, "4"), (3, "2"), (16, "1")])
def test_ranks_share_the_cores(repository, nproc, threads):
    env = components.train(config="mine.yaml", cpu=8, nproc=nproc).roles[0].env
    assert (env["OMP_NUM_THREADS"], env["OMP_WAIT_POLICY"]) == (threads, "PASSIVE")


def test_cores_of_this_machine_are_shared_by_nodes_and_ranks(repository, monkeypatch):
    monkeypatch.setattr(components, "_count_cores", lambda: 12)
    role = components.train(config="mine.yaml", nodes=2, nproc=3).roles[0]
    assert (role.resource.cpu, role.env["OMP_NUM_THREADS"]) == (6, "2")


def test_threads_of_the_user_win(repository, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert components.train(config="mine.yaml", cpu=8).roles[0].env["OMP_NUM_THREADS"] == "5"
    given = components.train(config="mine.yaml", cpu=8, env={"OMP_NUM_THREADS": "7"})
    assert given.roles[0].env["OMP_NUM_THREADS"] == "7"


def test_torchrun_is_found_without_an_activated_environment(repository, monkeypatch):
    folder = repository / "some venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "torchrun"):
        (folder / name).touch(mode=0o755)
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert f"""export PATH='{folder}':"$$PATH"; """ in components.train(config="mine.yaml").roles[0].args[1]
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    assert components.train(config="mine.yaml").roles[0].args[1].startswith("exec torchrun ")


@pytest.mark.parametrize(("scheduler", "expected"), [("local_cwd", "torchrun"), ("slurm", "#SBATCH")])
def test_a_dry_run_prints_the_request(repository, scheduler, expected):
    component = f"{ROOT / 'components' / 'train.py'}:htlnet"
    assert get_component(component).fn_name == "htlnet"
    with get_runner() as runner:
        info = runner.dryrun_component(component, ["--nproc", "2", "train.seed=1"], scheduler)
    request = str(info)
    assert expected in request
    assert "examples/cdnow/htlnet.yaml" in request
    assert "train.seed=1" in request
