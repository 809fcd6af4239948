"""What every built-in rule remembers goes through a checkpoint, and it goes on bit for bit."""

import pytest
import torch
import torch.distributed.checkpoint as dcp

from torchrec_mtl.registry import BUILT_IN, resolve
from torchrec_mtl.training.checkpoint import TensorReader

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

TASKS = ("click", "like", "watch")
OPTIONS = {
    "htlnet": {"core": "watch", "ema": 0.9},
    "metabalance": {"core": "watch"},
    "dwa": {"every": 2},  # one window is behind the checkpoint, and one is open
}
STATE = {
    "htlnet": {"norms": (1, 3)},
    "metabalance": {"lengths": (3, 3), "shares": (3, 3)},
    "gradnorm": {"log_weights": (3,), "first": (3,)},
    "uncertainty": {"log_variance": (3,)},
    "dwa": {"steps": (), "sums": (3,), "counts": (3,), "newer": (3,), "older": (3,)},
    "famo": {"logits": (3,), "previous": (3,), "mean": (3,), "square": (3,), "steps": (3,)},
    "gradvac": {"target": (3, 3)},
}


def rule_of(name):
    rule_class = resolve("rule", name)
    num_groups = 3 if rule_class.groups == "table" else 1
    return rule_class(rule_class.Config(**OPTIONS.get(name, {})), TASKS, num_groups)


def run(rule, steps):
    """Return the weights of some steps, each as a run would ask for them."""
    found = []
    for step in steps:
        g = torch.Generator().manual_seed(step)
        rows = torch.randn(rule.num_groups, len(TASKS), 20, generator=g)
        losses = torch.rand(len(TASKS), generator=g) + 0.5
        torch.manual_seed(step)
        weights = rule.weights(rows @ rows.mT if rule.needs == "gramian" else None, losses)
        found.append(weights.detach().clone())
        if parameters := list(rule.parameters()):
            gradients = torch.autograd.grad((weights * losses).sum() + rule.penalty(), parameters)
            with torch.no_grad():
                torch._foreach_sub_(parameters, gradients, alpha=0.1)
    return found


@pytest.mark.parametrize("name", BUILT_IN["rule"])
def test_a_rule_goes_on_from_a_checkpoint_bit_for_bit(name, tmp_path):
    rule, other = rule_of(name), rule_of(name)
    run(rule, range(3))
    state = rule.state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == STATE.get(name, {})
    dcp.save({"rule": state, "step": torch.tensor(3)}, checkpoint_id=tmp_path, no_dist=True)
    found = {"rule": {k: torch.full_like(v, 7) for k, v in other.state_dict().items()}, "step": torch.tensor(0)}
    dcp.load(found, storage_reader=TensorReader(str(tmp_path)), no_dist=True)
    other.load_state_dict(found["rule"])
    for key, value in rule.state_dict().items():
        assert other.state_dict()[key].dtype == value.dtype
        assert torch.equal(other.state_dict()[key], value)
    for one, again in zip(run(rule, range(3, 6)), run(other, range(3, 6)), strict=True):
        assert torch.equal(one, again)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in rule.state_dict().items())
