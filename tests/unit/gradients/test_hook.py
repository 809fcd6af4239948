"""The hook on an ordinary `EmbeddingBagCollection`; on sharded ones see tests/distributed/test_hook.py."""

import copy
import re

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, PoolingType

from torchrec_mtl.gradients.base import RuleConfig
from torchrec_mtl.gradients.famo import FAMORule
from torchrec_mtl.gradients.hook import GradientHook
from torchrec_mtl.gradients.htlnet import HTLNetRule
from torchrec_mtl.gradients.metabalance import MetaBalanceRule
from torchrec_mtl.gradients.torchjd_built_in import PCGradRule
from torchrec_mtl.gradients.uncertainty import UncertaintyRule

TASKS, B = ("click", "long_view", "watch"), 6


def tables():
    """The wide table first; "video" is looked up in both, so that its outputs are ``video@...``."""
    return [
        EmbeddingBagConfig(name="wide", embedding_dim=8, num_embeddings=5, feature_names=["video", "liked"]),
        EmbeddingBagConfig(
            name="narrow",
            embedding_dim=4,
            num_embeddings=5,
            feature_names=["user", "video"],
            pooling=PoolingType.MEAN,
        ),
    ]


def make_ids(order=("liked", "user", "video"), others=()):
    """Ids of each feature, the same in any order."""
    g = torch.Generator().manual_seed(0)
    lengths = {name: torch.randint(0, 4, (B,), generator=g) for name in ("user", "video", "liked", "else")}
    values = {name: torch.randint(5, (int(n.sum()),), generator=g) for name, n in lengths.items()}
    keys = [*order, *others]
    return KeyedJaggedTensor(
        keys, torch.cat([values[k] for k in keys]), lengths=torch.cat([lengths[k] for k in keys]).int()
    )


def make_ebc():
    torch.manual_seed(1)
    ebc = EmbeddingBagCollection(tables=tables())
    for p in ebc.parameters():
        nn.init.normal_(p)
    return ebc


def losses_of(pooled):
    g = torch.Generator().manual_seed(2)
    x = pooled.values()
    return torch.stack(
        [((x @ torch.randn(x.shape[1], generator=g)).tanh() - k).square().mean() * 3**k for k in range(3)]
    )


def make_hook(config, **options):
    return GradientHook(config, TASKS, tables=tables(), **options)


def dense_gradients(ebc, ids):
    """[K, n] whole gradients of each table, in the order of the collection."""
    losses = losses_of(ebc(ids))
    parts = [torch.autograd.grad(z, list(ebc.parameters()), retain_graph=True) for z in losses]
    return [torch.stack([p[i].flatten() for p in parts]) for i in range(2)]


@pytest.mark.parametrize("others", [(), ("else",)])
@pytest.mark.parametrize("order", [("liked", "user", "video"), ("user", "video", "liked")])
def test_rows_are_those_of_the_tables_in_whatever_order_ids_come(order, others):
    ebc, ids = make_ebc(), make_ids(order, others)
    hook = make_hook(HTLNetRule.Config(core="watch", exact="rows"))
    pooled = ebc(ids)
    hook(losses_of(pooled), pooled, ids).sum().backward()
    whole = torch.cat(dense_gradients(make_ebc(), ids), 1)
    torch.testing.assert_close(hook.boundary.gramian[0], whole @ whole.T, rtol=1e-4, atol=1e-5)
    found = torch.cat([p.grad.flatten() for p in ebc.parameters()])
    torch.testing.assert_close(found, (hook.boundary.weights @ whole).squeeze(0), rtol=1e-4, atol=1e-5)


def test_a_rule_by_table_weighs_tables_apart():
    ebc, ids = make_ebc(), make_ids()
    hook = make_hook(MetaBalanceRule.Config(core="watch", exact="rows"))
    pooled = ebc(ids)
    hook(losses_of(pooled), pooled, ids).sum().backward()
    assert hook.tables == ("narrow", "wide")
    wide, narrow = dense_gradients(make_ebc(), ids)
    for group, (own, parameter) in enumerate(zip((narrow, wide), reversed(list(ebc.parameters())))):
        torch.testing.assert_close(hook.boundary.gramian[group], own @ own.T, rtol=1e-4, atol=1e-5)
        expected = hook.boundary.weights[group] @ own
        torch.testing.assert_close(parameter.grad.flatten(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*hook.boundary.weights)


def test_a_plain_tensor_will_do_for_the_boundary():
    table = torch.randn(4, 3, requires_grad=True)
    hook = GradientHook(HTLNetRule.Config(core="b", alpha=1.0, gamma=0.0), ["a", "b"])
    losses = torch.stack([table.square().sum(), -table.sum()])
    for wrong in (table * 1.0, table.detach().requires_grad_()):
        with pytest.raises(ValueError, match="no loss depends on the boundary's tensors"):
            hook(losses, wrong)
    pooled = table * 1.0
    losses = torch.stack([pooled.square().sum(), -pooled.sum()])
    hook(losses, pooled).sum().backward()
    a, b = 2 * table.detach(), -torch.ones(4, 3)
    a = a - (a * b).sum().clamp(max=0) / b.square().sum() * b
    torch.testing.assert_close(table.grad, a + b)


def test_a_rule_of_losses_multiplies_them_and_adds_its_penalty():
    losses = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    weighed = make_hook(FAMORule.Config())(losses, torch.zeros(2, 3))
    torch.testing.assert_close(weighed / weighed.sum(), torch.full((3,), 1 / 3))
    hook = make_hook(UncertaintyRule.Config(initial=0.5))
    found = hook(losses, torch.zeros(2, 3))
    torch.testing.assert_close(found, torch.cat([losses / 2 * torch.tensor(-0.5).exp(), torch.tensor([0.75])]))
    found.sum().backward()
    assert (hook.rule.log_variance.grad != 0).all()


@pytest.mark.parametrize("mode", ["eval", "no_grad"])
def test_it_is_off_where_nothing_is_trained(mode):
    hook, losses = make_hook(UncertaintyRule.Config()).train(mode != "eval"), torch.ones(3, requires_grad=True)
    with torch.set_grad_enabled(mode != "no_grad"):
        assert hook(losses, torch.zeros(2, 3)) is losses
    assert int(hook.steps) == 0
    assert hook.boundary.weights is None


@pytest.mark.parametrize(
    "config", [PCGradRule.Config(), HTLNetRule.Config(core="watch", ema=0.9)], ids=lambda c: c.type
)
def test_a_restored_hook_goes_on_as_if_it_had_never_stopped(config):
    def step(hook, k):
        table = torch.randn(5, 4, generator=torch.Generator().manual_seed(k)).requires_grad_()
        pooled = table.tanh()
        mixed = pooled @ torch.randn(4, 3, generator=torch.Generator().manual_seed(100 + k))
        hook(mixed.sum(0), pooled).sum().backward()
        return table.grad

    whole, first = GradientHook(config, TASKS, seed=3), GradientHook(config, TASKS, seed=3)
    expected = [step(whole, k) for k in range(12)]
    for k in range(5):
        step(first, k)
    resumed = nn.ModuleDict({"hook": GradientHook(config, TASKS, seed=3)})
    resumed.load_state_dict({f"hook.{key}": copy.deepcopy(value) for key, value in first.state_dict().items()})
    assert all(torch.equal(step(resumed["hook"], k), expected[k]) for k in range(5, 12))
    assert int(resumed["hook"].steps) == 12


def test_what_is_missing_is_said_when_the_hook_is_made_or_called():
    with pytest.raises(ValueError, match="'metabalance' with exact: boundary must know the tables"):
        GradientHook(MetaBalanceRule.Config(core="watch"), TASKS)
    with pytest.raises(ValueError, match="unknown rule 'htlnt'"):
        GradientHook(RuleConfig(type="htlnt"), TASKS)
    with pytest.raises(ValueError, match="KeyedTensor itself"):
        make_hook(MetaBalanceRule.Config(core="watch"))(torch.ones(3, requires_grad=True), torch.zeros(2, 3))
    ids = make_ids()
    weighted = KeyedJaggedTensor(ids.keys(), ids.values(), torch.ones(len(ids.values())), lengths=ids.lengths())
    pooled = make_ebc()(ids)
    with pytest.raises(ValueError, match="unweighted"):
        make_hook(HTLNetRule.Config(core="watch", exact="rows"))(losses_of(pooled), pooled, weighted)


def test_a_plain_tensor_will_do_where_tables_are_known_but_not_looked_at():
    hook = GradientHook(HTLNetRule.Config(core="b"), ["a", "b"], tables=make_ebc().embedding_bag_configs())
    pooled = torch.randn(4, 3, requires_grad=True)
    hook(torch.stack([pooled.sum(), pooled.square().sum()]), pooled).sum().backward()
    assert pooled.grad is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"core": "bb"}, "core: no task 'bb'. Did you mean 'b'?"),
        ({"core": "b", "at": "representation"}, "leave `at` out"),
    ],
    ids=["core", "at"],
)
def test_options_that_cannot_act_are_refused(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        GradientHook(HTLNetRule.Config(**options), ["a", "b"])


def test_one_loss_a_task():
    hook = GradientHook(HTLNetRule.Config(core="b"), ["a", "b"])
    with pytest.raises(ValueError, match="one loss for each of a, b, found 3 losses"):
        hook(torch.ones(3), torch.zeros(2))
