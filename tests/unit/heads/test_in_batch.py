"""In-batch softmax: equal to loops over rows, negatives that do not count, and what has no gradient."""

import dataclasses
import math

import pytest
import torch

from torchrec_mtl.features import Candidates
from torchrec_mtl.heads.in_batch import in_batch_softmax
from torchrec_mtl.heads.student import Encoded

B, K, D = 5, 2, 3


def encoded(users=1, items=K, *, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    return Encoded(normal(users, B, D), normal(items, B, D), normal(K, B), torch.full((B, K), 0.5, dtype=torch.float64))


def candidates(keys=(7, 8, 9, 10, 11), shares=(0.1, 0.3, 0.2, 0.3, 0.1)):
    return Candidates(torch.tensor(keys), torch.tensor(shares, dtype=torch.float64).log())


def by_loops(found, negatives, valid=None):
    """-log P of each task and row."""
    losses = torch.zeros(K, B, dtype=torch.float64)
    for k in range(K):
        u, v = (side[min(k, len(side) - 1)].detach() for side in (found.users, found.items))
        for i in range(B):
            corrected: dict[int, float] = {}
            for j in range(B):
                same = j != i and negatives.keys[j] == negatives.keys[i]
                if same or (valid is not None and not valid[j]):
                    continue
                corrected[j] = float(u[i] @ v[j] + found.biases[k, j].detach() - negatives.log_share[j])
            losses[k, i] = math.log(sum(math.exp(x) for x in corrected.values())) - corrected.get(i, 0.0)
    return losses


@pytest.mark.parametrize(("users", "items"), [(1, K), (K, 1), (1, 1)])
@pytest.mark.parametrize("keys", [(7, 8, 9, 10, 11), (7, 8, 7, 7, 11)], ids=["all different", "one item thrice"])
def test_it_is_a_softmax_over_the_batch(users, items, keys):
    found, negatives = encoded(users, items), candidates(keys)
    torch.testing.assert_close(in_batch_softmax(found, negatives).detach(), by_loops(found, negatives))


def test_padding_is_nobodys_negative():
    found, negatives, valid = encoded(), candidates(), torch.tensor([1.0, 1, 1, 0, 0])
    losses = in_batch_softmax(found, dataclasses.replace(negatives, present=valid))
    torch.testing.assert_close(losses[:, :3].detach(), by_loops(found, negatives, valid)[:, :3])
    losses[:, :3].sum().backward()
    assert not found.items.grad[:, 3:].any()
    assert not found.biases.grad[:, 3:].any()
    assert found.items.grad[:, :3].all()


def test_items_drawn_are_columns_and_never_ask():
    found, negatives, present = encoded(), candidates((7, 8, 7, 7, 9)), torch.tensor([1.0, 1, 1, 1, 0])
    losses = in_batch_softmax(found, dataclasses.replace(negatives, present=present, num_rows=3))
    torch.testing.assert_close(losses[:, :3].detach(), by_loops(found, negatives, present)[:, :3])
    assert losses.shape == (K, B)
    assert not losses[:, 3:].any()
    losses.sum().backward()
    assert found.items.grad[:, 3].any()
    assert not found.users.grad[:, 3:].any()
    assert not found.items.grad[:, 4].any()


def test_a_frequent_item_is_a_weaker_negative():
    found = encoded()
    rare, frequent = (in_batch_softmax(found, candidates(shares=(0.1, q, 0.2, 0.2, 0.2))) for q in (0.01, 0.3))
    assert (frequent[:, 0] < rare[:, 0]).all()


def test_where_all_rows_are_of_one_item_nothing_is_to_be_told_apart():
    assert not in_batch_softmax(encoded(), candidates((7,) * B)).any()
