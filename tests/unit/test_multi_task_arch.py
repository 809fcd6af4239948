"""Head, losses, and gradient rule as one module: the sums written out, and what it refuses."""

import re

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torchrec.models.dlrm import OverArch

from tests.runs import TwoPhases
from torchrec_mtl import GradientHook, HTLNet, HTLNetRule, LabelScale, MultiTaskArch, Representation
from torchrec_mtl.gradients.uncertainty import UncertaintyRule
from torchrec_mtl.heads.aitm import AITM
from torchrec_mtl.heads.escm2 import ESCM2
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.heads.single_task import SingleTask
from torchrec_mtl.heads.stem import STEM
from torchrec_mtl.losses.regression import MeanSquaredError

TASKS, B, D = ("click", "watch"), 6, 5
LOSSES = {"click": "bce", "watch": "mse"}


def batch():
    g = torch.Generator().manual_seed(0)
    labels = torch.stack([torch.arange(B) % 2 == 0, torch.arange(B) % 3 == 0], dim=1).float()
    return torch.randn(B, D, generator=g).requires_grad_(), labels


def make(head_class=HTLNet, losses=LOSSES, tasks=TASKS, **options):
    torch.manual_seed(0)
    return MultiTaskArch(head_class(D, tasks), losses, **options)


def test_the_loss_is_the_sum_of_the_tasks_means():
    arch, (x, labels) = make().eval(), batch()
    loss, (losses, predictions, same) = arch(x, labels)
    z = arch.head(Representation(x)).logits
    expected = [binary_cross_entropy_with_logits(z["click"], labels[:, 0]), mse_loss(z["watch"], labels[:, 1])]
    torch.testing.assert_close(losses, torch.stack(expected))
    torch.testing.assert_close(loss, sum(expected))
    torch.testing.assert_close(predictions, torch.stack([z["click"].sigmoid(), z["watch"]], dim=1))
    assert same is labels
    assert not losses.requires_grad
    assert not predictions.requires_grad


@pytest.mark.parametrize("training", [True, False])
def test_rows_of_weight_zero_change_nothing_and_others_weigh_as_they_say(training):
    arch, (x, labels) = make(SharedBottom).train(training), batch()
    weights = torch.tensor([[1.0, 2.0], [1, 0], [0, 1], [1, 0], [0, 0], [3, 1]])
    loss, (losses, _, _) = arch(x, labels, weights=weights)
    strange = labels.where(weights > 0, torch.tensor(1e6))
    torch.testing.assert_close(arch(x, strange, weights=weights)[0], loss)
    z = arch.head(Representation(x)).logits
    values = torch.stack([(z["watch"] - labels[:, 1]).square()]).squeeze(0)
    torch.testing.assert_close(losses[1], (values * weights[:, 1]).sum() / weights[:, 1].sum())
    assert torch.isfinite(arch(x, labels, weights=torch.zeros_like(weights))[0])


@pytest.mark.parametrize(
    ("head", "watch"),
    [(SharedBottom, {"type": "mse", "transform": "log1p"}), (SharedBottom, "lognormal"), (ESCM2, "bce")],
)
def test_a_label_of_weight_zero_may_be_nan_and_gradients_are_finite_and_the_same(head, watch):
    x, labels = batch()
    weights = torch.tensor([[1.0, 2.0], [1, 0], [0, 1], [1, 0], [0, 0], [3, 1]])
    labels[:, 1] = labels[:, 1].clamp_min(0.5)  # a lognormal takes no 0

    def step(given):
        outputs = {"click": 1, "watch": 2 if watch == "lognormal" else 1}
        torch.manual_seed(0)
        arch = MultiTaskArch(head(D, outputs), {"click": "bce", "watch": watch})
        inside = x.detach().requires_grad_()
        loss, (losses, _, same) = arch(inside, given, weights=weights)
        assert same is given
        loss.backward()
        return losses, inside.grad, *(p.grad for p in arch.parameters())

    unknown = labels.where(weights > 0, torch.nan)
    assert unknown.isnan().any()
    found = step(unknown)
    assert all(value.isfinite().all() for value in found)
    torch.testing.assert_close(found, step(labels))


def test_losses_have_options_and_built_ones_know_the_labels_scale():
    x, labels = batch()
    raw = make(losses={"click": "bce", "watch": {"type": "mse", "transform": "log1p", "minimum": 0}}).eval()
    z = raw.head(Representation(x)).logits["watch"]
    torch.testing.assert_close(raw(x, labels)[1][0][1], mse_loss(z, labels[:, 1].log1p()))
    built = MeanSquaredError(MeanSquaredError.Config(), LabelScale(mean=4.0, std=2.0))
    arch = make(losses={"click": "bce", "watch": built}).eval()
    torch.testing.assert_close(arch(x, labels)[1][1][:, 1], z * 2 + 4)


def test_the_rule_acts_on_what_was_pooled_and_not_above():
    x, labels = batch()
    arch, plain = make(gradient=HTLNetRule.Config(core="watch", gamma=0.5)), make()
    for each in (arch, plain):
        each.head.eval()  # no sampled labels
    with pytest.raises(ValueError, match="no loss depends"):
        arch(x.detach(), labels, pooled=x * 1.0)
    pooled = x * 1.0
    arch(pooled, labels, pooled=pooled)[0].backward()
    weights = arch.hook.boundary.weights[0]
    z = plain.head(Representation(x)).logits
    each = [binary_cross_entropy_with_logits(z["click"], labels[:, 0]), mse_loss(z["watch"], labels[:, 1])]
    g = torch.stack([torch.autograd.grad(value, x, retain_graph=True)[0] for value in each])
    torch.testing.assert_close(x.grad, torch.einsum("k,kbd->bd", weights, g))
    assert not torch.allclose(weights, torch.ones(2))
    sum(each).backward(inputs=list(plain.parameters()))
    for (name, mine), theirs in zip(arch.head.named_parameters(), plain.head.parameters()):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=name)


def test_a_heads_own_losses_are_trained_terms_balanced_and_constraints_not():
    x, labels = batch()
    tasks, losses = ("click", "buy"), {"click": "bce", "buy": "bce"}
    escm2 = make(ESCM2, losses, tasks, gradient=UncertaintyRule.Config())
    assert escm2.hook.rule.tasks == (*tasks, *escm2.head.term_names)
    assert len(escm2(x, labels, pooled=x)[1][0]) == 2 + len(escm2.head.term_names)
    aitm = make(AITM, losses, tasks, gradient=HTLNetRule.Config(core="buy"))
    assert aitm.hook.rule.tasks == tasks
    pooled = x * 1.0
    loss, (shown, _, _) = aitm(pooled, labels, pooled=pooled)
    torch.testing.assert_close(loss.detach(), shown.sum())
    assert len(shown) == 3


@pytest.mark.parametrize(
    ("head", "losses", "message"),
    [
        (HTLNet, {"click": "bce", "wacth": "mse"}, "the head has no task 'wacth'. Did you mean 'watch'?"),
        (HTLNet, {"click": "bce"}, "missing: watch"),
        (HTLNet, {"click": "bce", "watch": "msee"}, "unknown loss 'msee'"),
        (HTLNet, {"click": "bce", "watch": {"type": "mse", "clap": 3}}, "clap"),
        (HTLNet, {"click": "bce", "watch": "zero_inflated_lognormal"}, "'watch' needs 3 logits and the head gives 1"),
        (TwoPhases, LOSSES, "TwoPhases trains in phases (first, second, ...)"),
        (SingleTask, LOSSES, "SingleTask wants tables of each task (tables = 'own'), and here all tasks read the same"),
        (STEM, LOSSES, "STEM wants tables of each task (tables = 'both')"),
    ],
)
def test_what_cannot_be_is_refused(head, losses, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make(head, losses)


def test_shapes_and_the_boundary_are_asked_for():
    x, labels = batch()
    with pytest.raises(ValueError, match=re.escape("labels: expected [B, 2], a column for each of click, watch")):
        make()(x, labels[:, 0])
    with pytest.raises(ValueError, match=re.escape("weights: expected [B, 2]")):
        make()(x, labels, weights=labels[:, :1])
    with pytest.raises(ValueError, match=re.escape("B = 6 rows as in x; found [1, 2]")):
        make()(x, labels, weights=torch.ones(1, 2))
    with pytest.raises(
        ValueError, match=re.escape("labels: expected [B, 2], a column for each of click, watch, and B = 6")
    ):
        make()(x, labels[:4])
    with pytest.raises(ValueError, match="pass the tables' output as pooled="):
        make(gradient=HTLNetRule.Config(core="watch"))(x, labels)


def test_a_loss_that_the_hook_does_not_know_is_lost_and_others_are_not():
    def step(others):
        table = torch.ones(2, requires_grad=True)
        pooled = table * 1.0
        hook = GradientHook(HTLNetRule.Config(core="b", alpha=1.0, gamma=0.0), ["a", "b"])
        losses = torch.stack([pooled[0], pooled[1]])
        more = 5 * pooled.sum()
        total = hook(losses, pooled, others=more.view(1)).sum() if others else hook(losses, pooled).sum() + more
        total.backward()
        return table.grad

    torch.testing.assert_close(step(others=True), torch.tensor([6.0, 6.0]))
    torch.testing.assert_close(step(others=False), torch.tensor([1.0, 1.0]))


def test_with_one_task_it_is_torchrecs_over_arch_and_loss():
    x, labels = batch()
    over = OverArch(D, [8, 4, 1])
    head = SharedBottom(D, ["click"], SharedBottom.Config(shared=(8, 4), tower=()))
    arch = MultiTaskArch(head, {"click": "bce"})
    theirs = list(over.parameters())
    mine = [*head.shared.parameters(), *head.towers.last.parameters()]
    with torch.no_grad():
        for a, b in zip(mine, theirs, strict=True):
            a.copy_(b.reshape(a.shape))
    expected = torch.nn.BCEWithLogitsLoss()(over(x).squeeze(1), labels[:, 0])
    loss, (_, predictions, _) = arch(x, labels[:, :1])
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(predictions, over(x).detach().sigmoid())
