"""The rule keeps the contract, and is what its paper writes."""

import pytest
import torch
from mtl_cross_stitch.rule import RandomWeights

from torchrec_mtl.testing import check_rule

TASKS = ["click", "long_view", "watch_time"]


@pytest.mark.parametrize("std", [1.0, 3.0])
def test_it_keeps_the_contract_of_rules(std: float) -> None:
    check_rule(RandomWeights, RandomWeights.Config(std=std), TASKS)


def test_weights_are_a_softmax_of_normal_numbers() -> None:
    rule = RandomWeights(RandomWeights.Config(std=2.0), TASKS)
    torch.manual_seed(0)
    found = rule.weights(None, torch.ones(3))
    torch.manual_seed(0)
    torch.testing.assert_close(found, 3 * torch.softmax(2 * torch.randn(3), dim=0))
