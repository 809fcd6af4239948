"""Keys that came later change nothing of what older versions wrote."""

from torchrec_mtl.config.later import unknown_before, with_later_keys
from torchrec_mtl.config.load import dump, parse
from torchrec_mtl.config.text import read_yaml

LATER = ("dtype", "kernel", "cache_load_factor", "precision", "comms", "save", "sinks")


def keys(text):
    return {line.strip().lstrip("- ").partition(":")[0] for line in text.splitlines()}


def test_at_their_defaults_they_are_left_out_and_otherwise_kept(raw):
    plain = parse(raw)
    assert set(LATER) <= keys(dump(plain))
    assert not set(LATER) & keys(dump(plain, without=unknown_before(plain)))
    raw["features"]["tables"][1]["dtype"] = "fp16"
    raw["train"] = {"precision": "bf16"}
    config = parse(raw)
    text = dump(config, without=unknown_before(config))
    assert {"dtype", "precision"} == set(LATER) & keys(text)
    assert parse(read_yaml(text)[0]) == config


def test_an_older_dump_is_the_same_run_and_another_value_is_not(raw):
    config = parse(raw)
    old, _ = read_yaml(dump(config, without=unknown_before(config)))
    new, _ = read_yaml(dump(config))
    assert with_later_keys(old, config)["train"] == new["train"]
    assert with_later_keys(old, config)["features"]["tables"] == new["features"]["tables"]
    raw["features"]["tables"][0]["dtype"] = "fp16"
    narrow = parse(raw)
    assert "dtype" not in with_later_keys(old, narrow)["features"]["tables"][0]
    assert with_later_keys(read_yaml(dump(narrow))[0], config)["features"]["tables"][0]["dtype"] == "fp16"


def test_an_older_dump_with_other_tables_is_left_as_it_is(raw):
    config = parse(raw)
    old = {"features": {"tables": [{"name": "a"}] * 5}, "train": {"epochs": 1}}
    found = with_later_keys(old, config)
    assert len(found["features"]["tables"]) == 5
    assert found["features"]["tables"][4] == {"name": "a"}
    assert found["train"] == {"epochs": 1, "save": "auto", "precision": "fp32", "comms": "fp32", "sinks": []}
