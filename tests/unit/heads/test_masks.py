"""Masks against sorted lists and sets in plain Python."""

from itertools import pairwise

import pytest
import torch

from torchrec_mtl.heads.masks import pack, prune, prune_and_grow, rate_of_round, shuffled, unpack

SIZES = [720 * 512, 512 * 256, 256 * 128]
N = sum(SIZES)


def random_mask(*shape, density=0.5, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < density


def distinct(size, seed=0):
    """Numbers from 1, no two alike, in random order."""
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).float() + 1


def indices(mask):
    return set(mask.nonzero()[:, 0].tolist())


@pytest.mark.parametrize("shape", [(1,), (8,), (13,), (2, 16), (3, 17), (2, 3, 5), (0,), (3, 0), (0, 5)], ids=str)
def test_unpacking_gives_back_what_was_packed(shape):
    mask = random_mask(*shape)
    bits = pack(mask)
    assert (bits.dtype, bits.shape) == (torch.uint8, (*shape[:-1], -(-shape[-1] // 8)))
    assert torch.equal(unpack(bits, shape[-1]), mask)


def test_a_connection_is_a_bit_and_the_rest_of_the_last_byte_is_0():
    mask = random_mask(13, seed=1)
    expected = [sum(int(m) << j for j, m in enumerate(mask[i : i + 8].tolist())) for i in (0, 8)]
    assert pack(mask).tolist() == expected
    assert pack(torch.ones(13, dtype=torch.bool)).tolist() == [255, 31]


@pytest.mark.parametrize("size", [16, 13])
def test_masks_need_not_be_contiguous(size):
    mask = random_mask(size, 3).T
    assert torch.equal(unpack(pack(mask), size), mask)


def test_a_mask_first_unpacked_in_an_evaluation_can_be_trained_with():
    mask = random_mask(20)
    with torch.inference_mode():
        unpack(pack(mask), 20)
    weight = torch.ones(20, requires_grad=True)
    torch.where(unpack(pack(mask), 20), weight, torch.zeros(())).sum().backward()
    assert torch.equal(weight.grad, mask.float())


def test_exporting_leaves_later_calls_as_they_were():
    class Masked(torch.nn.Module):
        def forward(self, x, bits):
            return torch.where(unpack(bits, 20), x, torch.zeros(()))

    mask, x = random_mask(20), torch.randn(3, 20)
    program = torch.export.export(Masked(), (x, pack(mask)))
    expected = torch.where(mask, x, torch.zeros(()))
    assert torch.equal(Masked()(x, pack(mask)), expected)
    assert torch.equal(program.module()(x, pack(mask)), expected)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.33126, 0.5, 0.9])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_pruning_is_the_papers_cut_in_a_sorted_list(density, rate):
    mask, magnitude = random_mask(300, density=density), distinct(300)
    left = sorted(magnitude[mask].tolist())
    cut = left[round(rate * len(left))]
    expected = [m and w >= cut for m, w in zip(mask.tolist(), magnitude.tolist(), strict=True)]
    found = prune(mask, magnitude, rate)
    assert found.tolist() == expected
    assert found.sum() == len(left) - round(rate * len(left))


def test_four_rounds_to_20_per_cent_leave_what_the_authors_files_are_called():
    rate, mask, left = rate_of_round(0.2, 4), torch.ones(N, dtype=torch.bool), [N]
    for number in range(4):
        mask = prune(mask, distinct(N, seed=number), rate)
        left.append(int(mask.sum()))
    assert N == 532_480
    assert rate == pytest.approx(0.33126, abs=1e-5)
    assert all(after == before - round(rate * before) for before, after in pairwise(left))
    assert [f"{100 * count / N:.2f}" for count in left] == ["100.00", "66.87", "44.72", "29.91", "20.00"]
    assert left[-1] == 106_496


@pytest.mark.parametrize(("density", "rounds"), [(0.2, 1), (0.1, 20), (0.8, 3)])
def test_rounds_of_the_rate_end_at_the_density(density, rounds):
    assert (1 - rate_of_round(density, rounds)) ** rounds == pytest.approx(density)


def test_pruned_connections_never_come_back_and_are_smaller_than_all_that_stay():
    before, magnitude = random_mask(500, density=0.6), distinct(500)
    after = prune(before, magnitude, 0.4)
    assert indices(after) < indices(before)
    assert magnitude[after].min() >= magnitude[before & ~after].max()


def test_what_is_as_large_as_the_smallest_that_stays_stays():
    magnitude = torch.tensor([1.0, 2, 2, 2, 3])
    assert prune(torch.ones(5, dtype=torch.bool), magnitude, 0.6).tolist() == [False, True, True, True, True]
    assert prune(torch.ones(5, dtype=torch.bool), torch.ones(5), 0.6).all()


@pytest.mark.parametrize("left", [1, 2, 5])
def test_one_connection_stays(left):
    mask = torch.arange(6) < left
    found = prune(mask, distinct(6), 1.0)
    assert indices(found) == {int(torch.where(mask, distinct(6), 0.0).argmax())}


def test_pruning_changes_no_argument_and_an_empty_mask_stays_empty():
    mask = random_mask(50)
    before = mask.clone()
    prune(mask, distinct(50), 0.0).zero_()
    prune_and_grow(mask, distinct(50), distinct(50), 0.0, 0.5).zero_()
    assert torch.equal(mask, before)
    empty = torch.zeros(5, dtype=torch.bool)
    assert not prune(empty, distinct(5), 0.5).any()
    assert not prune_and_grow(empty, distinct(5), distinct(5), 0.5, 0.5).any()


@pytest.mark.parametrize("grow", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("rate", [0.1, 0.33126, 0.9])
def test_growing_leaves_as_many_as_pruning(rate, grow):
    mask, magnitude, gradient = random_mask(400), distinct(400), distinct(400, seed=1)
    assert prune_and_grow(mask, magnitude, gradient, rate, grow).sum() == prune(mask, magnitude, rate).sum()


def test_what_comes_back_has_the_largest_gradients_of_the_pruned_and_what_stays_the_largest_weights():
    mask, magnitude, gradient = random_mask(400), distinct(400), distinct(400, seed=1)
    found = prune_and_grow(mask, magnitude, gradient, 0.4, 0.25)
    target = int(mask.sum()) - round(0.4 * int(mask.sum()))
    grown = round(0.25 * target)
    by_gradient = sorted(indices(~mask), key=lambda n: -gradient[n])
    by_size = sorted(indices(mask), key=lambda n: -magnitude[n])
    assert indices(found) == {*by_gradient[:grown], *by_size[: target - grown]}


def test_in_the_first_round_nothing_grows():
    full, magnitude = torch.ones(100, dtype=torch.bool), distinct(100)
    grown = prune_and_grow(full, magnitude, distinct(100, seed=1), 0.3, 0.5)
    assert torch.equal(grown, prune(full, magnitude, 0.3))


def test_no_more_grow_than_were_pruned():
    mask = torch.ones(100, dtype=torch.bool)
    mask[:3] = False
    found = prune_and_grow(mask, distinct(100), distinct(100, seed=1), 0.3, 0.5)
    assert found[:3].all()
    assert found.sum() == prune(mask, distinct(100), 0.3).sum()


def test_shuffling_keeps_the_counts_of_layers_and_another_seed_is_another_mask():
    sizes = [50, 30, 20]
    mask = torch.cat([random_mask(n, density=d) for n, d in zip(sizes, (0.1, 0.5, 0.9), strict=True)])
    one, again, other = (shuffled(mask, sizes, seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, mask)
    counts = [[int(part.sum()) for part in m.split(sizes)] for m in (mask, one, other)]
    assert counts[0] == counts[1] == counts[2]


def test_shuffled_masks_overlap_as_chance_has_it():
    mask = torch.arange(N) < 0.2 * N
    a, b = shuffled(mask, [N], 1), shuffled(mask, [N], 2)
    assert (a & b).sum() / (a | b).sum() == pytest.approx(0.04 / 0.36, abs=0.002)
    assert (a & b).sum() / N == pytest.approx(0.04, abs=0.001)
