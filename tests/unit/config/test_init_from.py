"""The key that names the run a new one starts from."""

import pytest
import yaml

from torchrec_mtl.config.init_from import InitFromConfig
from torchrec_mtl.config.load import dump, load_config, parse
from torchrec_mtl.config.schema import json_schema
from torchrec_mtl.config.text import write_yaml


def test_the_run_s_path_stands_for_the_mapping(raw):
    assert parse({**raw, "init_from": "runs/old"}).init_from == InitFromConfig(run="runs/old")
    assert parse({**raw, "init_from": {"run": "runs/old"}}) == parse({**raw, "init_from": "runs/old"})


def test_overrides_set_the_run_and_what_is_inside(tmp_path, raw):
    (tmp_path / "run.yaml").write_text(write_yaml(raw))
    config = load_config(tmp_path / "run.yaml", ["init_from.optimizers=true", "init_from=runs/old"])
    assert config.init_from == InitFromConfig(run="runs/old", optimizers=True)


def test_the_dump_is_as_before_where_it_is_not_set(raw):
    assert "init_from" not in yaml.safe_load(dump(parse(raw)))
    config = parse({**raw, "init_from": {"run": "runs/old", "checkpoint": "latest"}})
    assert yaml.safe_load(dump(config))["init_from"] == {"run": "runs/old", "checkpoint": "latest", "optimizers": False}
    assert parse(yaml.safe_load(dump(config))) == config


WRONG = {
    "init_from=3": "init_from: expected a mapping, such as {run: ...} (found 3)",
    "init_from={}": "init_from.run: missing. Its run_dir.",
    "init_from={run: runs/old, checkpoint: newest}": (
        "init_from.checkpoint: expected best or latest, found 'newest'. Did you mean 'best'?"
    ),
    "init_from={run: runs/old, optimizer: true}": "init_from.optimizer: unknown key. Did you mean 'optimizers'?",
    "init_from=runs/../runs/test": (
        "init_from.run: 'runs/../runs/test' is this run's own run_dir; give the new run another, such as "
        "run_dir=runs/test-2"
    ),
}


@pytest.mark.parametrize(("override", "message"), WRONG.items())
def test_mistakes_are_named(problems, override, message):
    assert problems(override) == [message]


def test_the_schema_takes_both_forms():
    schema = json_schema()
    kinds = [option.get("type") for option in schema["$defs"]["InitFromConfig"]["oneOf"]]
    assert kinds == ["string", "object"]
    assert {"$ref": "#/$defs/InitFromConfig"} in schema["properties"]["init_from"]["anyOf"]
