"""Every built-in rule keeps the promises of a gradient rule, and the check refuses rules that break one."""

import pytest
import torch

from torchrec_mtl.gradients.base import RuleConfig
from torchrec_mtl.gradients.htlnet import HTLNetRule
from torchrec_mtl.registry import BUILT_IN, resolve
from torchrec_mtl.testing import check_rule

TASKS = ("click", "long_view", "watch")
OPTIONS = {"sum": {}, "htlnet": {"core": "watch"}}


@pytest.mark.parametrize("tasks", [TASKS, TASKS[1:]], ids=len)
@pytest.mark.parametrize("name", BUILT_IN["rule"])
def test_built_in_rule_keeps_its_promises(name, tasks):
    rule_class = resolve("rule", name)
    check_rule(rule_class, rule_class.Config(type=name, **OPTIONS[name]), tasks)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 1.0, "gamma": 1.0},
        {"alpha": 1.0, "gamma": 1.0, "clip": 1e30},
        {"alpha": 0.0, "gamma": 0.5, "norm_source": "raw"},
        {"gamma": 1.0, "clip_two_sided": False},
        {"gamma": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("core", TASKS)
def test_options_of_htlnet_break_no_promise(core, options):
    check_rule(HTLNetRule, HTLNetRule.Config(core=core, **options), TASKS)


class Whole:
    """Scales each gradient to the size of the largest; the broken rules below change one thing each."""

    needs = "gramian"

    class Config(RuleConfig):
        type: str = "whole"
        favour: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __init__(self, config, tasks):
        self.config = config

    def weights(self, gramian, losses):
        norms = gramian.diagonal(dim1=1, dim2=2).sqrt()
        return torch.where(norms > 0, norms.amax(1, keepdim=True) / norms.clamp_min(1e-30), 1.0)


class IsNotANumberAtZero(Whole):
    def weights(self, gramian, losses):
        norms = gramian.diagonal(dim1=1, dim2=2).sqrt()
        return norms.amax(1, keepdim=True) / norms


class DropsATask(Whole):
    def weights(self, gramian, losses):
        return super().weights(gramian, losses)[:, 1:]


class Draws(Whole):
    def weights(self, gramian, losses):
        return super().weights(gramian, losses) * torch.rand(1)


class Remembers(Whole):
    last = 0.0

    def weights(self, gramian, losses):
        self.last = self.last * 0.9 + 1
        return super().weights(gramian, losses) * self.last


class ChangesItsArguments(Whole):
    def weights(self, gramian, losses):
        return super().weights(gramian.clamp_min_(-0.5), losses)


class FavoursTheFirst(Whole):
    def weights(self, gramian, losses):
        weights = super().weights(gramian, losses).clone()
        weights[:, 0] *= 2
        return weights


class FavoursByPosition(Whole):
    def weights(self, gramian, losses):
        return super().weights(gramian, losses) * torch.tensor(self.config.favour)


class ClipsByAbsoluteNorm(Whole):
    def weights(self, gramian, losses):
        return gramian.diagonal(dim1=1, dim2=2).sqrt().clamp_min(1.0).reciprocal()


class NeedsSomethingElse(Whole):
    needs = "gradients"


class WeighsByLoss(Whole):
    needs = "losses"

    def weights(self, gramian, losses):
        assert gramian is None
        return losses / losses.sum()


REFUSED = [
    (IsNotANumberAtZero, "not finite for no gradient"),
    (DropsATask, "weights of shape"),
    (Draws, "other weights for the same Gramian"),
    (Remembers, "other weights for the same Gramian"),
    (ChangesItsArguments, "changes its arguments"),
    (FavoursTheFirst, "another order"),
    (ClipsByAbsoluteNorm, "multiplied by one number"),
    (NeedsSomethingElse, "needs 'gradients'"),
]


@pytest.mark.parametrize(("rule_class", "promise"), REFUSED, ids=[c.__name__ for c, _ in REFUSED])
def test_broken_rule_is_refused_for_the_promise_it_breaks(rule_class, promise):
    with pytest.raises(AssertionError, match=promise):
        check_rule(rule_class, rule_class.Config(), TASKS)


@pytest.mark.parametrize("rule_class", [Whole, WeighsByLoss, FavoursByPosition])
def test_whole_rule_passes(rule_class):
    check_rule(rule_class, rule_class.Config(), TASKS)


def test_rule_may_depend_on_the_scale_if_it_says_so():
    check_rule(ClipsByAbsoluteNorm, ClipsByAbsoluteNorm.Config(), TASKS, scale_invariant=False)


def test_options_by_position_are_reordered_by_the_caller():
    config = FavoursByPosition.Config(favour=(1.0, 2.0, 3.0))

    def reordered(config, tasks):
        by_name = dict(zip(TASKS, config.favour))
        return config.model_copy(update={"favour": tuple(by_name[t] for t in tasks)})

    with pytest.raises(AssertionError, match="another order"):
        check_rule(FavoursByPosition, config, TASKS)
    check_rule(FavoursByPosition, config, TASKS, reordered=reordered)


def test_one_task_is_too_few():
    with pytest.raises(AssertionError, match="fewer than two tasks"):
        check_rule(Whole, Whole.Config(), ["click"])
