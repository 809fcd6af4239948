"""The TorchX components: what TorchX checks, what they would run, and what the user is told."""

import inspect
import shlex
from pathlib import Path

import docstring_parser
import pytest
from torchx.components.component_test_base import ComponentTestCase
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
    args = ["--nproc", "2", "--nodes", "4", "train.epochs=2", "run_dir=runs/a b"]
    app = materialize_appdef(components.shared_bottom, args)
    words = command_of(app)
    assert words[-3:] == ["examples/cdnow/shared_bottom.yaml", "train.epochs=2", "run_dir=runs/a b"]
    assert words[words.index("--nnodes") + 1] == "4"
    assert words[words.index("--nproc_per_node") + 1] == "2"
    assert app.roles[0].num_replicas == 4


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
        (["--nproc", "0"], "nproc is at least 1; found 0"),
        (["--nodes", "0"], "nodes is at least 1; found '0'"),
        (["--nodes", "2:1"], "the smaller number of nodes comes first; found '2:1': 1:2?"),
        (["--nodes", "a"], "nodes is a number, or a range such as 1:2; found 'a'"),
        (["--nodes", "-2"], "nodes is a number"),
        (["--nodes", "1:2:3"], "nodes is a number"),
        (["--max_restarts", "-1"], "max_restarts is at least 0; found -1"),
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


@pytest.mark.parametrize(
    ("args", "fits"),
    [
        (["--nodes", "2", "--nproc", "4"], True),
        (["--nodes", "1:2", "--nproc", "4"], True),
        (["--nodes", "4", "--nproc", "4"], False),
        (["--nodes", "1:4"], False),  # 3 ranks do not
        (["--nodes", "4", "--nproc", "4", "data.streams=32"], True),
        (["--nodes", "3", "data.streams=12"], True),
    ],
)
def test_ranks_that_training_would_refuse_are_refused_at_once(repository, args, fits):
    Path("mine.yaml").write_text("data: {train: t.parquet}")
    if fits:
        materialize_appdef(components.train, [*TRAIN, *args])
        return
    with pytest.raises(ComponentValidationException, match=r"the ranks divide data\.streams, 8; found") as error:
        materialize_appdef(components.train, [*TRAIN, *args])
    assert "every number of ranks is one of 1, 2, 4, 8" in str(error.value)


@pytest.mark.parametrize("content", [None, "- a list", "data: {streams: none}", "data: {streams: 0}", "{", "\xff"])
def test_a_config_that_cannot_be_read_here_is_left_to_the_ranks(repository, content):
    if content is not None:
        Path("mine.yaml").write_text(content, encoding="latin-1")
    assert components.train(config="mine.yaml", nodes="5").roles[0].num_replicas == 5


def test_the_number_of_nodes_may_be_a_number(repository):
    assert components.htlnet(nodes=2).roles[0].num_replicas == 2


@pytest.mark.parametrize("name", EXAMPLES)
def test_all_components_have_the_options_of_train(name):
    of_train = inspect.signature(components.train).parameters
    found = inspect.signature(getattr(components, name)).parameters
    assert list(found) == list(of_train)
    own = {key for key in found if found[key].default != of_train[key].default}
    assert own == {"config", "name"}


def test_torchx_finds_its_own_names_after_the_file():
    for name in EXAMPLES:
        assert get_component(f"{ROOT / 'components' / 'train.py'}:{name}").fn_name == name
