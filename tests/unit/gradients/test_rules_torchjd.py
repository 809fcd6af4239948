"""Weightings of torchjd by their dotted path: those that need one Gramian work, others are refused with the reason."""

import sys
from types import ModuleType
from typing import Literal

import pytest
import torch
import torchjd.aggregation
from torchjd.aggregation import ConstantWeighting, KrumWeighting, MeanWeighting

from torchrec_mtl.config.load import ConfigError, parse
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.registry import resolve

KRUM = "torchjd.aggregation:KrumWeighting"
TASKS = ("a", "b", "c", "d", "e")


def gramian_of(num_groups=1):
    rows = torch.randn(num_groups, len(TASKS), 20, generator=torch.Generator().manual_seed(0))
    return rows @ rows.transpose(1, 2)


def test_its_weights_are_torchjds():
    rule_class, gramian = resolve("rule", KRUM), gramian_of(2)
    rule = rule_class(rule_class.Config(n_byzantine=1, n_selected=2), TASKS, num_groups=2)
    expected = torch.stack([KrumWeighting(1, 2)(g.double()) for g in gramian]).float()
    weights = rule.weights(gramian, torch.ones(len(TASKS)))
    assert torch.equal(weights, expected)
    assert weights.dtype == torch.float32


def test_it_is_a_rule_with_the_weightings_options():
    rule_class = resolve("rule", KRUM)
    assert issubclass(rule_class, GradientRule)
    assert issubclass(rule_class.Config, RuleConfig)
    assert resolve("rule", KRUM) is rule_class
    assert rule_class.Config(n_byzantine=1).model_dump() == {
        "type": KRUM,
        "at": "embeddings",
        "exact": "boundary",
        "n_byzantine": 1,
        "n_selected": 1,
    }


def test_random_weights_are_those_of_the_seed():
    rule_class = resolve("rule", "torchjd.aggregation:RandomWeighting")
    rule = rule_class(rule_class.Config(), TASKS)

    def draw(seed):
        torch.manual_seed(seed)
        return rule.weights(gramian_of(), torch.ones(len(TASKS)))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MoDoWeighting", "wants another statistic"),
        ("SDMGradWeighting", "wants another statistic"),
        ("ExcessMTLWeighting", "wants another statistic"),
        ("GradVacWeighting", "remembers.* use the built-in 'gradvac'"),
        ("PCDWeighting", "remembers.* use a rule of your own"),
        ("CRMOGMWeighting", "remembers"),
        ("PCGrad", "an aggregator.* use the built-in 'pcgrad'"),
        ("Krum", "an aggregator.* use torchjd.aggregation:KrumWeighting"),
        ("PCD", "an aggregator.* use one of the built-in rules"),
        ("GradDrop", "an aggregator.* use one of the built-in rules"),
        ("ConstantWeighting", r"needs 'weights' \(torch.Tensor\), which no config can hold"),
        ("Weighting", "is no weighting"),
    ],
)
def test_others_are_refused_with_the_reason(name, reason):
    with pytest.raises(ValueError, match=f"'torchjd.aggregation:{name}' is no rule: .*{reason}"):
        resolve("rule", f"torchjd.aggregation:{name}")


def test_every_class_of_torchjd_is_either_a_rule_or_refused():
    for name in torchjd.aggregation.__all__:
        try:
            found = resolve("rule", f"torchjd.aggregation:{name}")
        except ValueError:
            continue
        assert issubclass(found, GradientRule)


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("KrumWeighting", {"n_byzantine": 4}, "at least 7 rows"),
        ("KrumWeighting", {"n_byzantine": -1}, "must be non-negative"),
        ("CAGradWeighting", {"c": -0.5}, "The built-in 'cagrad' needs no more than is installed"),
        ("KrumWeighting", {"n_byzantine": 0}, None),
    ],
)
def test_the_weighting_is_asked_before_the_run(name, options, problem):
    config = resolve("rule", f"torchjd.aggregation:{name}").Config(**options)
    if problem is None:
        assert config.problems(TASKS) == []
        return
    (found,) = config.problems(TASKS)
    assert problem in found


def test_a_run_is_configured_by_the_path():
    raw = make_config("train.parquet", run_dir="runs/test")
    config = parse({**raw, "gradient": {"type": KRUM, "n_byzantine": 0}})
    assert config.gradient.n_byzantine == 0
    with pytest.raises(ConfigError, match=r"gradient\.n_byzantin: unknown key"):
        parse({**raw, "gradient": {"type": KRUM, "n_byzantin": 0}})
    with pytest.raises(
        ConfigError, match="gradient: torchjd's KrumWeighting: Parameter `gramian` should have at least"
    ):
        parse({**raw, "gradient": {"type": KRUM, "n_byzantine": 3}})


class Own(MeanWeighting):
    """Options of every kind."""

    def __init__(
        self,
        scale: float = 1.0,
        mode: Literal["a", "b"] = "a",
        where: int | torch.Tensor | None = None,
        at: object = None,
    ) -> None:
        super().__init__()
        self.scale, self.mode, self.where = scale, mode, where

    def forward(self, matrix: torch.Tensor, /) -> torch.Tensor:
        return super().forward(matrix) * self.scale


class Fixed(ConstantWeighting):
    def __init__(self) -> None:
        super().__init__(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64))


class Clashes(MeanWeighting):
    def __init__(self, exact: bool = True) -> None:
        super().__init__()


@pytest.fixture
def own(monkeypatch):
    module = ModuleType("weightings_of_a_test")
    module.Own, module.Fixed, module.Clashes = Own, Fixed, Clashes
    monkeypatch.setitem(sys.modules, "weightings_of_a_test", module)


@pytest.mark.usefixtures("own")
def test_weightings_derived_from_torchjds_are_rules_too():
    rule_class = resolve("rule", "weightings_of_a_test:Own")
    config = rule_class.Config(scale=5.0, mode="b", where=None)
    assert torch.equal(rule_class(config, TASKS).weights(gramian_of(), torch.ones(5)), torch.ones(1, 5))
    with pytest.raises(ValueError, match="mode"):
        rule_class.Config(mode="c")
    fixed = resolve("rule", "weightings_of_a_test:Fixed")
    assert fixed(fixed.Config(), TASKS).weights(gramian_of(), torch.ones(5)).tolist() == [[1, 2, 3, 4, 5]]


@pytest.mark.usefixtures("own")
def test_an_option_that_all_rules_have_cannot_be_the_weightings():
    with pytest.raises(ValueError, match="its parameter 'exact' has the name of an option that all rules share"):
        resolve("rule", "weightings_of_a_test:Clashes")


def test_gradients_that_are_not_finite_are_named():
    rule_class, gramian = resolve("rule", KRUM), gramian_of()
    gramian[0, 2, 2] = torch.inf
    with pytest.raises(ValueError, match="the gradients of 'c' are not finite"):
        rule_class(rule_class.Config(n_byzantine=1), TASKS).weights(gramian, torch.ones(len(TASKS)))


def test_weights_that_are_not_finite_stop_the_run():
    rule_class = resolve("rule", "torchjd.aggregation:PCGradWeighting")
    rule = rule_class(rule_class.Config(), TASKS)
    with pytest.raises(ValueError, match="PCGradWeighting gives weights that are not finite"):
        # No Gramian at all: gradients opposed to some of length 0.
        rule.weights(torch.eye(5).unsqueeze(0) - 1, torch.ones(5))
