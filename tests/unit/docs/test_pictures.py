"""What the pictures of the gradient rules show is what the rules do, and what the page says of them."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "docs" / "pictures"


@pytest.fixture(scope="module")
def pictures():
    pytest.importorskip("matplotlib")
    spec = importlib.util.spec_from_file_location("make_rules", FOLDER / "make_rules.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def outcomes(pictures, scene):
    return {rule: pictures.outcome(rule, torch.tensor(pictures.SCENES[scene])) for rule in pictures.RULES}


def labels(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize("name", ["rules-conflict", "rules-agree", "rows"])
def test_the_committed_pictures_are_what_the_script_draws(pictures, name, tmp_path):
    if name == "rows":
        drawn = pictures.draw_rows(tmp_path)
    else:
        drawn = pictures.draw_scene(name.removeprefix("rules-"), tmp_path)
    committed = (FOLDER / f"{name}.svg").read_text()
    assert labels(committed)
    assert labels(committed) == labels(drawn.read_text())


def test_the_pictures_follow_the_colour_scheme():
    for picture in FOLDER.glob("*.svg"):
        text = picture.read_text()
        assert "prefers-color-scheme: dark" in text, picture.name
        assert not re.search(r"#101112|#fefdfc|#a0a1a2", text), picture.name


def test_what_the_page_says_of_tasks_that_disagree(pictures):
    found = outcomes(pictures, "conflict")
    assert found["sum"].progress[0] < 0 < found["sum"].progress[1]
    assert found["htlnet"].progress[0] < 0  # it protects watch, not click
    core = torch.tensor(pictures.SCENES["conflict"][1])
    assert found["htlnet"].progress[1] >= core.square().sum()  # the core is never held back
    for rule in ("metabalance", "gradnorm", "pcgrad", "mgda", "cagrad", "upgrad"):
        assert (found[rule].progress > 0).all(), rule
    assert torch.allclose(found["pcgrad"].weights, found["upgrad"].weights, atol=1e-5)
    assert torch.allclose(*found["mgda"].progress, atol=1e-4)
    click, watch = torch.tensor(pictures.SCENES["conflict"])
    weights = found["gradnorm"].weights
    assert torch.allclose(weights[0] * click.norm(), weights[1] * watch.norm(), rtol=0.03)


def test_what_the_page_says_of_tasks_that_agree(pictures):
    found = outcomes(pictures, "agree")
    for rule in ("sum", "pcgrad", "upgrad"):
        assert torch.allclose(found[rule].weights, torch.ones(2), atol=1e-5), rule
    for rule in ("htlnet", "metabalance", "gradnorm"):
        assert found[rule].weights[0] > 1, rule
    assert torch.allclose(found["mgda"].weights, torch.tensor([2.0, 0.0]), atol=1e-5)


def test_the_row_that_is_looked_up_twice_disagrees_only_as_a_row():
    boundary, row = (
        float(value)
        for value in re.search(
            r"boundary adds up the lookups, ([+-][\d.]+).*takes the row, ([+-][\d.]+)",
            " ".join(labels((FOLDER / "rows.svg").read_text())),
        ).groups()
    )
    assert row < 0 < boundary
