"""Every row of the benchmark is a config that loads."""

import importlib.util
from pathlib import Path

import pytest

from torchrec_mtl.config.load import load_config

ROOT = Path(__file__).parents[3]


def load_script():
    spec = importlib.util.spec_from_file_location("hybrid_targets", ROOT / "benchmarks" / "hybrid_targets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
ROWS = [(data, name) for data in script.DATA for name in script.rows(data)]


@pytest.mark.parametrize(("data", "name"), ROWS, ids=[f"{data}: {name}" for data, name in ROWS])
def test_a_row_is_a_config(data, name):
    config, text = str(ROOT / "examples" / data / "htlnet.yaml"), script.rows(data)[name]
    words, plain = script.overrides(config, text, 0.5), load_config(config)
    run = load_config(config, words)
    assert run.optim.dense.lr == pytest.approx(plain.optim.dense.lr / 2)
    frozen = "frozen" in name
    assert run.optim.sparse.lr == pytest.approx(1e-12 if frozen else plain.optim.sparse.lr / 2)
    assert run.head.type == name.split()[0]
    assert run.tasks[2].kind == "regression"
    assert (run.tasks[2].gate is not None) == ("gate" in name)
    if name.startswith("htlnet"):
        assert (run.gradient.type == "htlnet") == (", rule" in name)


@pytest.mark.parametrize("data", script.DATA)
def test_no_two_rows_are_the_same(data):
    texts = [" ".join(text.split()) for text in script.rows(data).values()]
    assert len(set(texts)) == len(texts)


def test_questions_ask_for_rows_that_there_are():
    for question, one, other in script.QUESTIONS:
        assert {one, other} <= set(script.rows("cdnow")), question
