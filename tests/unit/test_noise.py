"""Noise depends on seed, step, name, and the row of the global batch, and on nothing else."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mtl.noise import Noise, stable_seed

WHOLE = Noise(seed=1, step=2, rows=torch.arange(32), global_size=32)


@given(order=st.permutations(range(32)), cut=st.integers(0, 32))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_noise_of_a_row_does_not_depend_on_the_split_over_ranks(order, cut):
    whole = WHOLE.uniform("a")
    for rows in (torch.tensor(order[:cut], dtype=torch.int64), torch.tensor(order[cut:], dtype=torch.int64)):
        assert torch.equal(dataclasses.replace(WHOLE, rows=rows).uniform("a"), whole[rows])


@pytest.mark.parametrize("other", [{"seed": 2}, {"step": 3}], ids=str)
def test_noise_differs_by_seed_and_step(other):
    assert not torch.equal(dataclasses.replace(WHOLE, **other).uniform("a"), WHOLE.uniform("a"))


def test_noise_differs_by_name_and_repeats_for_the_same():
    assert not torch.equal(WHOLE.uniform("a"), WHOLE.uniform("b"))
    assert torch.equal(WHOLE.uniform("a"), WHOLE.uniform("a"))


def test_noise_leaves_torchs_generator_alone_and_does_not_read_it():
    torch.manual_seed(0)
    state, first = torch.get_rng_state(), WHOLE.uniform("a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(WHOLE.uniform("a"), first)


def test_noise_is_uniform_between_zero_and_one():
    many = Noise(seed=0, step=0, rows=torch.arange(100_000), global_size=100_000).uniform("a")
    assert (many > 0).all()
    assert (many < 1).all()
    assert torch.isfinite(torch.logit(many)).all()
    for quantile in (0.1, 0.5, 0.9):
        assert torch.quantile(many, quantile).item() == pytest.approx(quantile, abs=0.01)


def test_noise_of_several_numbers_a_row():
    wide, rows = WHOLE.uniform("a", 3, 2), torch.tensor([5, 1])
    assert wide.shape == (32, 3, 2)
    assert len(wide.unique()) == wide.numel()
    assert torch.equal(dataclasses.replace(WHOLE, rows=rows).uniform("a", 3, 2), wide[rows])


def test_seed_is_the_same_on_every_machine():
    assert stable_seed(0, "user", 3) == 8475592272019776794
    assert 0 <= stable_seed("x") < 2**63
    assert stable_seed(1, 23) != stable_seed(12, 3)
