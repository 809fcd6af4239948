"""What becomes of a run's state on the command line: plain tensors, and a run that starts from it."""

import json
import re

import torch


def test_unshard_writes_plain_tensors(small, cli, tmp_path):
    out = tmp_path / "new" / "plain.pt"
    done = cli("unshard", small / "run", "--out", out)
    assert done.returncode == 0, done.stderr
    found = torch.load(out, weights_only=True)
    assert set(found) == {"step", "tables", "dense"}
    assert {name: tuple(table.shape) for name, table in found["tables"].items()} == {
        "item": (60, 8),
        "tag": (64, 8),
        "user": (100, 8),
    }
    tensors = [*found["tables"].values(), *found["dense"].values()]
    size = sum(t.numel() * t.element_size() for t in tensors)
    step = json.loads((small / "run" / "metrics.json").read_text())["step"]
    assert found["step"] == step  # the best one, which is evaluated
    assert done.stdout == f"{len(tensors)} tensors of step {step}, {size:,} bytes, written to {out}\n"
    assert [path.name for path in out.parent.iterdir()] == ["plain.pt"]

    again = cli("unshard", small / "run", "--out", out, "--checkpoint", "latest", "--optimizers")
    assert again.returncode == 0, again.stderr
    found = torch.load(out, weights_only=True)
    assert {name: sorted(states) for name, states in found["table_states"].items()} == {
        name: ["momentum1"] for name in ("item", "tag", "user")
    }
    assert sorted(found["dense_states"]["head.last.0.weight"]) == ["exp_avg", "exp_avg_sq", "step"]


def test_the_python_of_the_page_fills_a_model(small, cli, repository, tmp_path):
    page = (repository / "docs" / "checkpoints.md").read_text()
    out = tmp_path / "mine.pt"
    assert cli("unshard", small / "run", "--out", out).returncode == 0
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block.replace("mine.pt", str(out)).replace("runs/mine", str(small / "run")), names)
    for table, weight in names["found"]["tables"].items():
        assert torch.equal(names["model"].embeddings.parameters_of([table])[0], weight)


def test_unshard_says_what_is_wrong(small, cli, tmp_path):
    done = cli("unshard", tmp_path, "--out", tmp_path / "plain.pt")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {tmp_path} is not a run: it has no config.yaml of one. Give the run_dir of a training\n"
    )
    done = cli("unshard", small / "run", "--out", small / "config.yaml" / "plain.pt")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot write {small / 'config.yaml' / 'plain.pt'}: ")
    assert (small / "config.yaml").is_file()


def test_a_run_starts_from_another_with_more_rows(small, cli, tmp_path):
    changes = ["features.tables.user.rows=130", "train.epochs=1", "train.max_steps=20", f"run_dir={tmp_path / 'new'}"]
    done = cli("train", small / "config.yaml", f"init_from={small / 'run'}", *changes)
    assert done.returncode == 0, done.stderr
    assert f"starting from {small / 'run' / 'checkpoints'}" in done.stdout
    assert "  table user keeps 100 rows and gets 30 new ones" in done.stdout
    report = json.loads((tmp_path / "new" / "init_from.json").read_text())
    assert report["tables"] == ["item", "tag", "user"]
    assert report["states"] == []
    own = cli("train", small / "config.yaml", f"init_from={small / 'run'}")
    assert own.returncode == 1
    assert "is this run's own run_dir; give the new run another, such as" in own.stderr
