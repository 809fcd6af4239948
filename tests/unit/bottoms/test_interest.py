"""Interests of all pairs equal loops over tasks, sequences, and rows, and what a pair does not know cannot reach it."""

import dataclasses

import pytest
import torch

from tests.unit.bottoms.reference import interests
from tests.unit.bottoms.sequences import (
    BATCHES,
    EMPTY,
    LENGTHS,
    NUM_ROWS,
    TASKS,
    WIDTH,
    features_of,
    leaves,
    padded,
    randomised,
    rows_of,
    sequence,
    spec_of,
)
from torchrec_mtl.bottoms.conditions import HyperNetwork, PlainNorms
from torchrec_mtl.bottoms.interest import Interest
from torchrec_mtl.features import GAP_BUCKETS, Features, FeaturesSpec, Jagged
from torchrec_mtl.testing.subject import gradients_of, weighted

K = len(TASKS)
TIMED = spec_of(sequence("clicked", gaps=True), sequence("bought"), sequence("seen", target=None, gaps=True))


def norms_of(spec, known, layers):
    behaviors = [s.behavior for s in spec.sequences]
    if known == "nothing":
        return PlainNorms(len(behaviors), 2 * layers, WIDTH)
    return HyperNetwork(K, behaviors, 2 * layers, WIDTH, condition=known, task_dim=2, behavior_dim=3, hidden=(6,))


def build(spec=None, *, known="both", layers=1, positions=True, to_target=True, start=False, dtype=torch.float64):
    torch.manual_seed(0)
    spec = spec or spec_of()
    norms = norms_of(spec, known, layers)
    options = {"layers": layers, "heads": 2, "hidden": 6, "positions": positions, "to_target": to_target}
    interest = Interest(spec.sequences, norms, **options)
    return interest.to(dtype) if start else randomised(interest, dtype)


def assert_equal_to_loops(interest, features, num_tasks=K):
    found, expected = interest(features), interests(interest, features, num_tasks)
    torch.testing.assert_close(found, expected)
    of = [*leaves(features), *interest.parameters()]
    for one, other in zip(*(gradients_of(weighted(s), of) for s in (found, expected)), strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
def test_interests_and_gradients_equal_loops(lengths):
    spec = spec_of()
    assert_equal_to_loops(build(spec), features_of(spec, lengths))


@pytest.mark.parametrize(
    "options",
    [
        {"layers": 2},
        {"positions": False},
        {"to_target": False},
        {"to_target": False, "positions": False, "layers": 2},
        {"known": "task"},
        {"known": "behavior", "layers": 2},
    ],
    ids=str,
)
def test_options_equal_loops(options):
    spec = spec_of()
    assert_equal_to_loops(build(spec, **options), features_of(spec))


@pytest.mark.parametrize("layers", [1, 2])
def test_plain_norms_make_one_interest_for_all_tasks(layers):
    spec = spec_of()
    assert_equal_to_loops(build(spec, known="nothing", layers=layers), features_of(spec), num_tasks=1)


def test_sequences_with_and_without_times_stand_together():
    interest, features = build(TIMED), features_of(TIMED)
    assert interest.gaps.shape == (GAP_BUCKETS + 1, WIDTH)
    assert_equal_to_loops(interest, features)


def test_no_times_take_no_weights():
    assert build().gaps is None
    assert build(positions=False).positions is None
    assert build(to_target=False).query is None


def test_each_event_reads_the_bucket_of_its_time():
    spec = spec_of(sequence("clicked", gaps=True), sequence("bought"))
    interest = build(spec)
    features = features_of(spec, {"clicked": [1, 2], "bought": [2, 0]})
    timed = dataclasses.replace(features.sequences["clicked"], gaps=torch.tensor([0, GAP_BUCKETS - 1, 5]))
    features = dataclasses.replace(features, sequences={**features.sequences, "clicked": timed})
    (gradient,) = gradients_of(weighted(interest(features)), [interest.gaps])
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [0, 5, GAP_BUCKETS - 1, GAP_BUCKETS]


def test_a_history_reads_the_positions_nearest_to_the_row():
    spec = spec_of(sequence("clicked"))
    interest = build(spec)
    (gradient,) = gradients_of(weighted(interest(features_of(spec, {"clicked": [0, 3, 2]}))), [interest.positions])
    assert gradient.abs().sum(1).nonzero().flatten().tolist() == [0, 1, 2]


def test_a_history_that_was_cut_keeps_the_positions_of_what_is_left():
    """Positions further back than the cut are as if they were not there."""
    spec = spec_of(sequence("clicked"), num_dense=0)
    interest, whole = build(spec), features_of(spec, {"clicked": [5]})
    jagged = whole.sequences["clicked"]
    cut = dataclasses.replace(whole, sequences={"clicked": Jagged(jagged.values[2:], torch.tensor([3]))})
    before, before_the_cut = interest(cut), interest(whole)
    with torch.no_grad():
        interest.positions[3:] += 1
    assert torch.equal(interest(cut), before)
    assert not torch.allclose(interest(whole), before_the_cut)


def columns(found, j):
    return found[:, :, j * WIDTH : (j + 1) * WIDTH]


def test_at_first_all_tasks_have_the_same_interests_bit_by_bit():
    """The hyper-network's last layer is zero: its norms are layer norms without scale and shift."""
    spec = spec_of()
    interest, features = build(spec, layers=2, start=True), features_of(spec)
    found = interest(features)
    assert found.abs().sum() > 0
    assert torch.equal(found, found[:1].expand(K, -1, -1))
    plain = Interest(
        spec.sequences, PlainNorms(3, 4, WIDTH), layers=2, heads=2, hidden=6, positions=True, to_target=True
    ).double()
    plain.load_state_dict({n: v for n, v in interest.state_dict().items() if "norms" not in n}, strict=False)
    torch.testing.assert_close(plain(features)[0], found[0], rtol=0, atol=1e-14)


@pytest.mark.parametrize("k", range(K))
def test_a_tasks_embedding_reaches_its_own_interests_alone_bit_by_bit(k):
    spec = spec_of()
    interest, features = build(spec, layers=2), features_of(spec)
    before = interest(features)
    with torch.no_grad():
        interest.norms.tasks[k] += 1
    after = interest(features)
    there = before[k] != 0  # empty histories stay at zero
    assert ((after[k] != before[k]) == there).all()
    others = [i for i in range(K) if i != k]
    assert torch.equal(after[others], before[others])


@pytest.mark.parametrize("j", range(3))
def test_a_behaviours_embedding_reaches_its_own_column_of_every_task_bit_by_bit(j):
    spec = spec_of()
    interest, features = build(spec, layers=2), features_of(spec)
    before = interest(features)
    with torch.no_grad():
        interest.norms.behaviors[j] += 1
    after = interest(features)
    for i in range(3):
        mine, old = columns(after, i), columns(before, i)
        assert ((mine != old) == (old != 0)).all() if i == j else torch.equal(mine, old)


def test_two_sequences_of_one_type_change_together():
    spec = spec_of(sequence("clicked"), sequence("bought"), sequence("seen", behavior="clicked", target=None))
    interest, features = build(spec), features_of(spec)
    assert len(interest.norms.behaviors) == 2
    before = interest(features)
    with torch.no_grad():
        interest.norms.behaviors[0] += 1
    after = interest(features)
    assert [torch.equal(columns(after, j), columns(before, j)) for j in range(3)] == [False, True, False]


def test_a_task_sends_no_gradient_to_anothers_embedding():
    spec = spec_of()
    interest, features = build(spec), features_of(spec)
    shared = [*interest.norms.mlp.parameters(), *interest.transformer.parameters(), interest.query.weight]
    for k, s in enumerate(interest(features)):
        tasks, *others = gradients_of(weighted(s), [interest.norms.tasks, interest.norms.behaviors, *shared])
        assert tasks.abs().sum(1).nonzero().flatten().tolist() == [k]
        assert all(g.abs().sum() > 0 for g in others)


def test_an_empty_history_is_of_no_interest():
    spec = spec_of()
    found = build(spec)(features_of(spec))
    for j, s in enumerate(spec.sequences):
        empty = torch.tensor(LENGTHS[s.name]) == 0
        assert ((columns(found, j) == 0).all(-1) == empty).all()


def test_without_any_event_everything_is_zero_gradients_too():
    spec = spec_of()
    interest, features = build(spec, layers=2), features_of(spec, EMPTY)
    found = interest(features)
    assert torch.equal(found, torch.zeros(K, NUM_ROWS, 3 * WIDTH, dtype=torch.float64))
    for gradient in gradients_of(weighted(found), [*leaves(features), *interest.parameters()]):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
def test_a_row_alone_equals_the_row_in_a_batch(dtype, bound):
    interest, features = build(TIMED, layers=2, dtype=dtype), features_of(TIMED, dtype=dtype)
    with torch.no_grad():
        whole = interest(features)
        for b in range(NUM_ROWS):
            alone = interest(rows_of(features, [b]))
            torch.testing.assert_close(alone[:, 0], whole[:, b], rtol=bound, atol=bound)


def test_one_block_of_the_longest_width_equals_groups(monkeypatch):
    interest, features = build(TIMED, layers=2), features_of(TIMED)
    of = [*leaves(features), *interest.parameters()]
    grouped = interest(features)
    gradients = gradients_of(weighted(grouped), of)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    block = interest(features)
    torch.testing.assert_close(block, grouped)
    torch.testing.assert_close(gradients_of(weighted(block), of), gradients)


@pytest.mark.parametrize("compiling", [False, True])
def test_padding_changes_nothing(monkeypatch, compiling):
    """Neither rows without histories behind the batch, nor room for longer histories than there are."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    interest, features = build(TIMED), features_of(TIMED)
    before = interest(features)
    after = interest(padded(features, 3))
    torch.testing.assert_close(after[:, :NUM_ROWS], before)
    assert torch.equal(after[:, NUM_ROWS:], torch.zeros(K, 3, 3 * WIDTH, dtype=torch.float64))
    interest.max_length, positions = 40, interest.positions
    interest.positions = torch.nn.Parameter(torch.cat([positions, torch.full((31, WIDTH), 5.0)]))
    torch.testing.assert_close(interest(features), before)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
@pytest.mark.parametrize("known", ["both", "nothing"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_folded_one_gives_the_same_and_follows_no_later_change_of_its_norms(layers, known, dtype, bound):
    interest, features = build(TIMED, layers=layers, known=known, dtype=dtype), features_of(TIMED, dtype=dtype)
    before, folded = interest(features), interest.folded()
    bound *= before.detach().abs().max()
    torch.testing.assert_close(folded(features), before, rtol=0, atol=bound)
    with torch.no_grad():
        for p in interest.norms.parameters():
            p += 1
    assert not torch.allclose(interest(features), before)
    torch.testing.assert_close(folded(features), before, rtol=0, atol=bound)
    mine = {id(p) for p in interest.norms.parameters()}
    assert not mine & {id(p) for p in folded.parameters()}
    assert not any(b.requires_grad for b in folded.buffers())


def test_without_dense_columns_and_without_other_fields_it_works_too():
    spec = FeaturesSpec((), (sequence("clicked", target=None),), ())
    features = Features(
        {}, {"clicked": Jagged(torch.randn(3, WIDTH).double(), torch.tensor([3, 0]))}, torch.zeros(2, 0).double(), spec
    )
    interest = build(spec)
    torch.testing.assert_close(interest(features), interests(interest, features, K))
