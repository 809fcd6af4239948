"""The TorchX component that serves: what TorchX checks, and what it would run."""

import inspect
import re
import shlex
from pathlib import Path

import docstring_parser
import pytest
from torchx.components.component_test_base import ComponentTestCase
from torchx.runner import get_runner
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import ComponentValidationException, ModuleComponentsFinder
from typer.testing import CliRunner

from components import serving
from torchrec_mtl.cli import app

ROOT = Path(__file__).parents[3]


def command_of(made):
    (role,) = made.roles
    assert (role.entrypoint, role.args[0]) == ("bash", "-c")
    words = shlex.split(role.args[1].replace("$$", "$"))
    return words[words.index("exec") + 1 :]


def test_torchx_accepts_it_and_lists_no_helper(capsys):
    case = ComponentTestCase()
    case.setUp()
    try:
        case.validate(serving, "serve")
    finally:
        case.tearDown()
    assert "--bundle" in capsys.readouterr().out
    found = ModuleComponentsFinder(serving, group="").find()
    assert [component.name for component in found if not component.validation_errors] == ["serve"]


def test_every_argument_has_help_of_its_own():
    help_of = {p.arg_name: p.description for p in docstring_parser.parse(serving.serve.__doc__).params}
    assert list(help_of) == list(inspect.signature(serving.serve).parameters)
    assert all(help_of.values())


def test_options_reach_the_command():
    args = [
        "--bundle",
        "a b",
        "--index",
        "i",
        "--port",
        "9",
        "--host",
        "0.0.0.0",
        "--args",
        "--workers 3 --allow-reload",
    ]
    made = materialize_appdef(serving.serve, [*args, "--env", "A=1", "--mounts", "type=bind,src=/x,dst=/y"])
    words = ["python", "-m", "torchrec_mtl", "serve", "a b", "--host", "0.0.0.0", "--port", "9", "--workers", "2"]
    assert command_of(made) == [*words, "--index", "i", "--workers", "3", "--allow-reload"]  # the last one counts
    (role,) = made.roles
    assert (role.port_map, role.num_replicas) == ({"http": 9}, 1)
    assert role.env["A"] == "1"
    assert len(role.mounts) == 1


@pytest.mark.parametrize(("resources", "workers"), [({}, "2"), ({"cpu": 5}, "5"), ({"h": "gpu.small"}, "8")])
def test_it_works_on_as_many_requests_as_it_gets_cores(resources, workers):
    words = command_of(serving.serve("b", **resources))
    assert words[words.index("--workers") + 1] == workers


def test_the_command_has_these_options():
    words = command_of(serving.serve("no such bundle", args="--allow-reload --access-log", port=1))
    said = CliRunner().invoke(app, words[3:])
    assert said.exit_code == 1
    assert "no bundle in" in said.output


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"port": 0}, "port is at least 1; found 0"),
        ({"replicas": 0}, "replicas is at least 1; found 0"),
        ({"args": '"'}, "args is no command line"),
    ],
)
def test_a_wrong_command_is_explained(changed, message):
    with pytest.raises(ComponentValidationException, match=message):
        serving.serve("b", **changed)


@pytest.mark.parametrize("scheduler", ["local_cwd", "local_docker"])
def test_schedulers_take_it(scheduler):
    with get_runner() as runner:
        info = runner.dryrun_component(f"{ROOT / 'components' / 'serving.py'}:serve", ["--bundle", "b"], scheduler, {})
    text = re.sub(r"'\s*\n\s*'", "", str(info))  # long strings are printed in parts
    assert "serve b --host 127.0.0.1 --port 8000" in text
