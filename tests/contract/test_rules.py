"""Every built-in rule keeps the promises of a gradient rule, and the check refuses rules that break one."""

import random

import pytest
import torch
from torch import nn

from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.gradients.cagrad import CAGradRule
from torchrec_mtl.gradients.htlnet import HTLNetRule
from torchrec_mtl.gradients.metabalance import MetaBalanceRule
from torchrec_mtl.gradients.torchjd_built_in import AlignedRule
from torchrec_mtl.registry import BUILT_IN, resolve
from torchrec_mtl.testing import check_rule
from torchrec_mtl.testing.rule_ranks import check_rules_on_ranks

TASKS = ("click", "long_view", "watch")
OPTIONS = {"htlnet": {"core": "watch"}, "metabalance": {"core": "watch"}, "dwa": {"every": 3}}


def config_of(name):
    return resolve("rule", name).Config(type=name, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("tasks", [TASKS, TASKS[1:]], ids=len)
@pytest.mark.parametrize("name", BUILT_IN["rule"])
def test_built_in_rule_keeps_its_promises(name, tasks):
    check_rule(resolve("rule", name), config_of(name), tasks)


@pytest.mark.parametrize("weighting", ["RandomWeighting", "PCGradWeighting", "MeanWeighting"])
def test_a_weighting_of_torchjd_keeps_them_too(weighting):
    rule_class = resolve("rule", f"torchjd.aggregation:{weighting}")
    check_rule(rule_class, rule_class.Config(), TASKS)


@pytest.mark.distributed
def test_two_ranks_come_to_the_weights_of_one():
    names = [*BUILT_IN["rule"], "torchjd.aggregation:RandomWeighting"]
    check_rules_on_ranks([(resolve("rule", name), config_of(name)) for name in names], TASKS)


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


@pytest.mark.parametrize(
    ("rule_class", "options"),
    [
        (CAGradRule, {"c": 0.01}),
        (CAGradRule, {"c": 5.0, "rescale": False}),
        (AlignedRule, {"scale_mode": "median"}),
        (AlignedRule, {"scale_mode": "rmse"}),
        (MetaBalanceRule, {"core": "click", "relax": 1.0, "beta": 0.0}),
    ],
    ids=str,
)
def test_options_of_others_break_no_promise(rule_class, options):
    check_rule(rule_class, rule_class.Config(**options), TASKS)


class Whole(GradientRule):
    """Scales each gradient to the size of the largest; the broken rules below change one thing each."""

    needs = "gramian"

    class Config(RuleConfig):
        type: str = "whole"
        favour: tuple[float, ...] = (1.0, 1.0, 1.0)

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


class AnswersInDoubles(Whole):
    def weights(self, gramian, losses):
        return super().weights(gramian.double(), losses)


class DrawsItsOwnNumbers(Whole):
    def weights(self, gramian, losses):
        return super().weights(gramian, losses) * random.random()


class DrawsAndFavoursTheFirst(Whole):
    def weights(self, gramian, losses):
        weights = super().weights(gramian, losses) * torch.rand(len(self.tasks))
        weights[:, 0] *= 4
        return weights


class RemembersInAnAttribute(Whole):
    last = 0.0

    def weights(self, gramian, losses):
        self.last = self.last * 0.9 + 1
        return super().weights(gramian, losses) * self.last


class RemembersFromTheFirstStepOn(Whole):
    def __init__(self, config, tasks, num_groups=1):
        super().__init__(config, tasks, num_groups)
        self.register_buffer("seen", None)

    def weights(self, gramian, losses):
        self.seen = torch.ones(())
        return super().weights(gramian, losses)


class RemembersWithItsGraph(Whole):
    needs = "losses"

    def __init__(self, config, tasks, num_groups=1):
        super().__init__(config, tasks, num_groups)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.ones(()))

    def weights(self, gramian, losses):
        self.mean = 0.9 * self.mean + 0.1 * self.scale
        return torch.ones_like(losses) * self.mean


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
    scale_invariant = False

    def weights(self, gramian, losses):
        return gramian.diagonal(dim1=1, dim2=2).sqrt().clamp_min(1.0).reciprocal()


class ClipsInSilence(ClipsByAbsoluteNorm):
    scale_invariant = True


class NeedsSomethingElse(Whole):
    needs = "gradients"


class GroupsBySomethingElse(Whole):
    groups = "feature"


class GroupsWithoutGramian(Whole):
    needs, groups = "losses", "table"


class AddsUpTables(Whole):
    groups = "table"

    def weights(self, gramian, losses):
        return super().weights(gramian, losses)[:2]


class WeighsByLoss(Whole):
    needs = "losses"

    def weights(self, gramian, losses):
        assert gramian is None
        return losses / losses.sum().clamp_min(1e-30)


class ReadsOnTheHost(WeighsByLoss):
    def weights(self, gramian, losses):
        return losses / max(losses.sum().item(), 1e-30)


class Branches(WeighsByLoss):
    def weights(self, gramian, losses):
        return super().weights(gramian, losses) if losses.sum() > 0 else torch.ones_like(losses)


class Learns(Whole):
    needs = "losses"

    def __init__(self, config, tasks, num_groups=1):
        super().__init__(config, tasks, num_groups)
        self.scale = nn.Parameter(torch.ones(len(tasks)))

    def weights(self, gramian, losses):
        return self.scale.exp()

    def penalty(self):
        return self.scale.sum()


class LearnsNothing(Learns):
    def weights(self, gramian, losses):
        return self.scale.detach().exp()

    def penalty(self):
        return None


class LearnsFromInfinity(Learns):
    def weights(self, gramian, losses):
        return losses * self.scale.sub(1).abs().sqrt()


class PenaltyATask(Learns):
    def penalty(self):
        return self.scale


class PenaltyWithoutBound(Learns):
    def penalty(self):
        return self.scale.sum() / 0.0


class NoRule:
    needs, groups, scale_invariant, Config = "gramian", "all", True, Whole.Config


REFUSED = [
    (NoRule, "does not derive from GradientRule"),
    (NeedsSomethingElse, "has needs 'gradients'"),
    (GroupsBySomethingElse, "has groups 'feature'"),
    (GroupsWithoutGramian, "without needing the Gramian"),
    (IsNotANumberAtZero, "not finite for no gradient"),
    (DropsATask, "weights of shape"),
    (AnswersInDoubles, r"torch\.float64"),
    (AddsUpTables, r"shape \(2, 3\).*\(3, 3\)"),
    (ChangesItsArguments, "changes its arguments"),
    (DrawsItsOwnNumbers, "from the same seed"),
    (RemembersInAnAttribute, "restored from its state_dict"),
    (RemembersFromTheFirstStepOn, "changes its state's names"),
    (RemembersWithItsGraph, "keeps a graph in mean"),
    (LearnsNothing, "neither its weights nor its penalty reach"),
    (LearnsFromInfinity, "gradient to 'scale' that is not finite"),
    (PenaltyATask, "penalty of shape"),
    (PenaltyWithoutBound, "penalty that is not finite"),
    (ReadsOnTheHost, "reads values on the host"),
    (Branches, "reads values on the host"),
    (ClipsInSilence, "multiplied by one number"),
    (FavoursTheFirst, "another order"),
    (DrawsAndFavoursTheFirst, "another order"),
]


@pytest.mark.parametrize(("rule_class", "promise"), REFUSED, ids=[c.__name__ for c, _ in REFUSED])
def test_broken_rule_is_refused_for_the_promise_it_breaks(rule_class, promise):
    with pytest.raises(AssertionError, match=promise):
        check_rule(rule_class, rule_class.Config(), TASKS)


class DrawsEvenly(Whole):
    def weights(self, gramian, losses):
        return super().weights(gramian, losses) * torch.rand(len(self.tasks))


class RemembersInABuffer(Whole):
    def __init__(self, config, tasks, num_groups=1):
        super().__init__(config, tasks, num_groups)
        self.register_buffer("last", torch.zeros(()))

    def weights(self, gramian, losses):
        self.last.mul_(0.9).add_(1)
        return super().weights(gramian, losses) * self.last


class WeighsTables(Whole):
    groups = "table"


@pytest.mark.parametrize(
    "rule_class",
    [
        Whole,
        WeighsByLoss,
        WeighsTables,
        FavoursByPosition,
        ClipsByAbsoluteNorm,
        DrawsEvenly,
        RemembersInABuffer,
        Learns,
    ],
)
def test_whole_rule_passes(rule_class):
    check_rule(rule_class, rule_class.Config(), TASKS)


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


def test_ranks_cannot_find_a_rule_by_another_type():
    with pytest.raises(AssertionError, match="other processes cannot find it"):
        check_rules_on_ranks([(Whole, Whole.Config(type="sum"))], TASKS)
