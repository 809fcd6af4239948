"""Crafted files run nothing, reach nothing of others, and are refused by name."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from benchmarks.bad_inputs_runs import damage_metadata
from benchmarks.bad_inputs_tables import Proof
from benchmarks.bad_inputs_tries import call, plain_config, suite
from tests.pages import well_formed
from torchrec_mtl import registry
from torchrec_mtl.data.files import open_files

TAG = "!!python/object/apply:builtins.open ['{proof}', w]"


@pytest.fixture
def proof(tmp_path):
    """There, if something foreign was run."""
    path = tmp_path / "proof"
    yield path
    assert not path.exists()


@pytest.fixture
def run(bench, tmp_path):
    return Path(shutil.copytree(bench.run, tmp_path / "copied"))


def checkpoint(run):
    (folder,) = run.glob("checkpoints/step-*")
    return folder


def refused(words, expected):
    done = call(words)
    assert done.error is None, done.error
    assert done.status == 1
    assert expected in done.said
    return done.said


# YAML


def test_tags_of_python_in_a_config_a_suite_and_a_run_are_refused(bench, run, proof, tmp_path):
    tag = TAG.format(proof=proof)
    file = tmp_path / "bad.yaml"
    file.write_text(f"bottom: {tag}\n")
    for words in (
        ["train", file],
        ["config", "show", file],
        ["plan", file, "--device", "cpu"],
        ["bench", file],
        ["check", file],
    ):
        refused(words, "could not determine a constructor for the tag")
    (run / "config.yaml").write_text(f"bottom: {tag}\n" + (run / "config.yaml").read_text())
    data = ["--data", bench.folder / "eval.parquet"]
    refused(["evaluate", run, *data], "config.yaml")
    refused(["predict", run, *data, "--out", tmp_path / "out.parquet"], "config.yaml")
    refused(["report", run], "is not a run")
    refused(["unshard", run, "--out", tmp_path / "out.pt"], "is not a run")
    new = ["train", bench.folder / "config.yaml", f"init_from={run}", f"run_dir={tmp_path / 'new'}"]
    refused(new, "is not a run")
    assert not (tmp_path / "new" / "config.yaml").exists()
    refused(["train", bench.folder / "config.yaml", "--", f"bottom={tag}"], "the value is not YAML")


# Checkpoints


def spoilt(run, how, proof):
    """Craft the metadata of the only checkpoint, with notes that hold no checksums."""

    def change(metadata):
        if how == "pickle":
            metadata.planner_data = Proof(proof)
            return
        places = {"outside": f"../../../{proof.name}.pt", "absolute": f"{proof}.pt"}
        for index, place in list(metadata.storage_data.items()):
            metadata.storage_data[index] = type(place)(places[how], place.offset, place.length)

    torch.save(torch.zeros(3), f"{proof}.pt")
    damage_metadata(checkpoint(run), change)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("pickle", "refused"),
        ("outside", "refused tensors outside the checkpoint: ../../../proof.pt"),
        ("absolute", "refused tensors outside the checkpoint: /"),
    ],
)
def test_crafted_metadata_of_a_checkpoint_reach_nothing_outside_it(bench, run, proof, tmp_path, how, expected):
    spoilt(run, how, proof)
    data = ["--data", bench.folder / "eval.parquet"]
    for words in (
        ["evaluate", run, *data],
        ["predict", run, *data, "--out", tmp_path / "out.parquet"],
        ["unshard", run, "--out", tmp_path / "out.pt"],
        ["train", bench.folder / "config.yaml", f"init_from={run}", f"run_dir={tmp_path / 'new'}"],
        ["train", bench.folder / "config.yaml", f"run_dir={run}"],
    ):
        refused(words, expected)
    assert not (tmp_path / "new").exists()


def test_pickled_tensors_of_a_checkpoint_are_not_unpickled(bench, run, proof, tmp_path):
    payload = pickle.dumps(Proof(proof), protocol=2)
    (folder,) = run.glob("checkpoints/step-*")
    (file,) = folder.glob("*.distcp")

    def change(metadata):
        for index, place in list(metadata.storage_data.items()):
            metadata.storage_data[index] = type(place)(place.relative_path, 0, len(payload))

    file.write_bytes(payload)
    damage_metadata(folder, change)
    refused(["evaluate", run, "--data", bench.folder / "eval.parquet"], "error: cannot load")
    refused(["unshard", run, "--out", tmp_path / "out.pt"], "error: cannot read")


def test_what_unshard_writes_holds_tensors_alone(bench, tmp_path):
    assert call(["unshard", bench.run, "--out", tmp_path / "out.pt", "--optimizers"]).status == 0
    assert torch.load(tmp_path / "out.pt", weights_only=True)["tables"]


# Tables, indexes, pages


def test_an_extension_type_that_older_pyarrow_unpickled_is_not(bench, proof, tmp_path):
    about = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Proof(proof)),
    }
    column = bench.rows.schema.get_field_index("user_id")
    schema = bench.rows.schema.set(column, bench.rows.schema.field("user_id").with_metadata(about))
    pq.write_table(pa.Table.from_arrays(bench.rows.columns, schema=schema), tmp_path / "bad.parquet")
    (file,) = open_files(str(tmp_path / "bad.parquet"))
    assert file.read_row_group(0, ["user_id"]).num_rows
    assert call(["evaluate", bench.run, "--data", tmp_path / "bad.parquet"]).status == 0
    assert not proof.exists()


def test_vectors_that_are_not_what_was_written_never_come_to_faiss(bench, proof, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(bench.index, tmp_path / "index"))
    content = bytearray((folder / "index.faiss").read_bytes())
    content[-5] ^= 1
    (folder / "index.faiss").write_bytes(content)
    monkeypatch.setattr("faiss.read_index", lambda path: pytest.fail("was read"))
    words = ["search", folder, "--queries", bench.folder / "eval.parquet", "--out", tmp_path / "out.parquet"]
    refused(words, "is damaged: index.faiss is not what was written")


def test_names_in_a_page_are_text(bench, run):
    evil = "<script>alert(1)</script>"
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["tasks"][0] |= {"name": evil, "label": evil}
    config["head"]["type"] = config["train"]["seed"] = evil
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = {"step": 1, "tasks": {evil: {evil: 0.5}}}
    (run / "metrics.json").write_text(json.dumps(metrics))
    lines = [
        {"step": s, f"train/loss/{evil}": 0.5, f"eval/{evil}/{evil}": 0.5, f"{evil}/{evil}/{evil}": 1.0} for s in (1, 2)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = {"kind": "table", "title": evil, "columns": [evil], "rows": [[evil]], "note": evil}
    matrix = {"kind": "matrix", "title": evil, "rows": [evil], "columns": [evil], "values": [[1.0]], "note": evil}
    (run / "findings.json").write_text(json.dumps([table, matrix]))
    group = {"rows": 1, "prediction": 0.5, "label": 0.5, "half": 0.0}
    calibration = {"version": 1, "step": 1, "split": evil, "tasks": {evil: [group]}}
    (run / "calibration.json").write_text(json.dumps(calibration))
    part = {"table": evil, "sharding": evil, "kernel": evil, "rows": 1, "columns": 1, "bytes": 4}
    held = {"rank": 0, "device": evil, "parts": [part], "table_state": 0, "dense": 0, "dense_state": 0, "peak_host": 1}
    (run / "ranks.json").write_text(json.dumps({"version": 1, "ranks": [{**held, "peak_device": None}]}))
    renamed = run.rename(run.with_name("<script>alert(2)<script>"))
    done = call(["report", renamed, "--out", run.with_name("page.html")])
    assert done.status == 0, done.said
    other = Path(shutil.copytree(renamed, run.with_name("other")))
    done = call(["report", renamed, other, "--out", run.with_name("both.html")])
    assert done.status == 0, done.said
    for name in ("page.html", "both.html"):
        page = run.with_name(name).read_text()
        assert "<script" not in page
        assert page.count("&lt;script&gt;") > 20
        well_formed(page)


# Code that a config brings in


@pytest.mark.parametrize("value", ["off", "OFF", "0", "no such word"])
def test_any_word_but_on_switches_off(monkeypatch, value):
    monkeypatch.setenv(registry.SWITCH, value)
    with pytest.raises(
        ValueError, match=f"^mine is code that the config brings in, and {registry.SWITCH}={value} refuses"
    ):
        registry.check_switch("mine")


def test_dotted_paths_and_prepare_can_be_switched_off(bench, proof, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(proof)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(registry.SWITCH, "off")
    raw = plain_config(bench.folder, str(tmp_path / "run"))
    for section, path in (
        ("head", ["head"]),
        ("bottom", ["bottom"]),
        ("rule", ["gradient"]),
        ("loss", ["tasks", 0, "loss"]),
    ):
        config = copy.deepcopy(raw)
        place = config
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = {"type": "evil:Head"}
        file = bench.write(config, tmp_path / "config.yaml")
        for words in (["config", "check", file], ["train", file], ["plan", file, "--device", "cpu"], ["check", file]):
            refused(
                words,
                f"{section} 'evil:Head' is code that the config brings in, and {registry.SWITCH}=off refuses that",
            )
    raw["data"] |= {"prepare": "evil.py", "train": str(tmp_path / "missing.parquet")}
    file = bench.write(raw, tmp_path / "config.yaml")
    refused(["train", file], "evil.py is code that the config brings in")
    comparison = suite(bench.folder) | {
        "data": {"planted": {"config": str(file), "set": {"data.test": raw["data"]["eval"]}}}
    }
    refused(["bench", bench.write(comparison, tmp_path / "suite.yaml"), "--out", tmp_path / "out"], "evil.py is code")


def test_a_run_of_others_brings_no_code_in_where_that_is_switched_off(bench, run, proof, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(proof)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(registry.SWITCH, "off")
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["head"] = {"type": "evil:Head"}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    refused(
        ["evaluate", run, "--data", bench.folder / "eval.parquet"], "head 'evil:Head' is code that the config brings in"
    )


def test_built_in_and_installed_names_are_not_switched_off(monkeypatch):
    monkeypatch.setenv(registry.SWITCH, "off")
    path = "torchrec_mtl.heads.mmoe:MMoE"
    monkeypatch.setattr(registry, "_installed", lambda group: {"theirs": path} if group.endswith("heads") else {})
    assert registry.resolve("head", "mmoe") is registry.resolve("head", "theirs")
    with pytest.raises(ValueError, match="is code that the config brings in"):
        registry.resolve("head", path)
    monkeypatch.setenv(registry.SWITCH, "on")
    assert registry.resolve("head", path).__name__ == "MMoE"
