"""Attention over histories laid end to end equals attention to each history alone, whatever they are padded to."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.unit.bottoms.sequences import BATCHES
from torchrec_mtl.bottoms import histories as module
from torchrec_mtl.bottoms.histories import Histories
from torchrec_mtl.features import Jagged
from torchrec_mtl.testing.subject import gradients_of, weighted

D, HEADS = 4, 2


def made(lengths, max_length=9, dtype=torch.float64, lengths_dtype=torch.int32):
    g = torch.Generator().manual_seed(0)
    jagged = [
        Jagged(torch.randn(sum(n), D, generator=g, dtype=dtype), torch.tensor(n, dtype=lengths_dtype)) for n in lengths
    ]
    return Histories(jagged, max_length)


def numbers(*shape, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64, requires_grad=True)


def spans(lengths):
    """(start, length) of each history, those of the first sequence first."""
    start = 0
    for length in (n for sequence_lengths in lengths for n in sequence_lengths):
        yield start, length
        start += length


def attended(qkv, lengths):
    """[N, M, d], history by history, version by version, head by head."""
    rows = []
    for start, length in spans(lengths):
        found = torch.empty(length, qkv.shape[1], D, dtype=qkv.dtype)
        for m in range(qkv.shape[1]):
            q, k, v = qkv[start : start + length, m].split(D, dim=1)
            for cut in torch.arange(D).chunk(HEADS):
                weights = torch.softmax(q[:, cut] @ k[:, cut].T / math.sqrt(len(cut)), dim=1)
                found[:, m, cut] = weights @ v[:, cut]
        rows.append(found)
    return torch.cat(rows)


def summed(events, queries, lengths):
    """[H, M, d], zeros for an empty history."""
    rows = []
    for h, (start, length) in enumerate(spans(lengths)):
        of_row = []
        for m in range(queries.shape[1]):
            y = events[start : start + length, min(m, events.shape[1] - 1)]
            of_row.append(torch.softmax(y @ queries[h, m] / math.sqrt(D), dim=0) @ y)
        rows.append(torch.stack(of_row))
    return torch.stack(rows)


SETS = {name: list(lengths.values()) for name, lengths in BATCHES.items()}


@pytest.fixture(params=["grouped", "one block"])
def layout(request, monkeypatch):
    """Groups of about one length, as on the CPU, or one block of the longest width, as elsewhere."""
    if request.param == "one block":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    return request.param


@pytest.mark.parametrize("versions", [1, 3])
@pytest.mark.parametrize("lengths", SETS.values(), ids=SETS)
def test_attention_and_its_gradient_equal_loops(lengths, versions, layout):
    h = made(lengths)
    qkv = numbers(len(h.values), versions, 3 * D)
    found, expected = h.attend(qkv, HEADS), attended(qkv, lengths)
    assert found.shape == (len(h.values), versions, D)
    torch.testing.assert_close(found[:-1], expected)
    torch.testing.assert_close(gradients_of(weighted(found[:-1]), [qkv]), gradients_of(weighted(expected), [qkv]))


@pytest.mark.parametrize("versions", [1, 3])
@pytest.mark.parametrize("lengths", SETS.values(), ids=SETS)
def test_sums_by_queries_and_their_gradients_equal_loops(lengths, versions, layout):
    h = made(lengths)
    queries = numbers(len(h.lengths), 3, D, seed=2)
    events = numbers(len(h.values), versions, D)
    found, expected = (
        x * h.present()[:, None, None] for x in (h.pool(events, queries), summed(events, queries, lengths))
    )
    torch.testing.assert_close(found, expected)
    of = [events, queries]
    torch.testing.assert_close(gradients_of(weighted(found), of), gradients_of(weighted(expected), of))


@pytest.mark.parametrize("max_length", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 25])
def test_no_longest_length_leaves_a_history_out(max_length):
    lengths = [list(range(max_length + 1)), list(range(max_length, -1, -1))]
    h = made(lengths, max_length)
    qkv = numbers(len(h.values), 1, 3 * D)
    torch.testing.assert_close(h.attend(qkv, HEADS)[:-1], attended(qkv, lengths))


def test_short_histories_do_not_pay_for_long_ones(monkeypatch):
    seen = []

    def record(q, k, v, **options):
        seen.append((q.shape[0], k.shape[2]))
        return scaled_dot_product_attention(q, k, v, **options)

    monkeypatch.setattr(module, "scaled_dot_product_attention", record)
    lengths = [[1, 30, 0, 1, 7], [2, 3, 1, 16, 17]]
    h = made(lengths, 30)
    h.attend(numbers(len(h.values), 1, 3 * D), HEADS)
    assert sum(count for count, _ in seen) == 10
    assert max(width for _, width in seen) == 30
    grouped = sum(count * width for count, width in seen)
    assert grouped <= 4 * 1 + 2 + 4 + 8 + 16 + 24 + 30
    seen.clear()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    h = made(lengths, 30)
    h.attend(numbers(len(h.values), 1, 3 * D), HEADS)
    assert seen == [(10, 30)]


def test_ages_count_from_the_last_event():
    assert made([[3, 0, 1], [0, 2, 0]]).ages().tolist() == [2, 1, 0, 0, 1, 0, 0]
    assert made([[0, 0]]).ages().tolist() == [0]


def test_events_are_cut_by_sequence():
    h = made([[3, 0], [0, 0], [1, 1]])
    cut = h.by_sequence(torch.arange(6))
    assert [part.tolist() for part in cut] == [[0, 1, 2], [], [3, 4, 5]]


def test_events_stand_as_they_came_with_zeros_behind():
    jagged = [Jagged(torch.randn(3, D), torch.tensor([1, 2])), Jagged(torch.randn(1, D), torch.tensor([0, 1]))]
    values = Histories(jagged, 9).values
    assert torch.equal(values[:3], jagged[0].values)
    assert torch.equal(values[3], jagged[1].values[0])
    assert torch.equal(values[4], torch.zeros(D))


def test_histories_with_an_event_are_told_apart_from_empty_ones():
    assert made([[3, 0], [0, 1]]).present().tolist() == [1, 0, 0, 1]
    assert made([[1]], dtype=torch.float32).present().dtype == torch.float32


def test_what_stands_in_padded_slots_reaches_no_event(layout):
    """The further row is what padding reads; here it says something, and the gradient looks for it."""
    lengths = SETS["mixed"]
    h = made(lengths)
    qkv = numbers(len(h.values), 2, 3 * D)
    changed = torch.cat([qkv[:-1], 1e6 * torch.ones_like(qkv[-1:])])
    assert torch.equal(h.attend(qkv, HEADS)[:-1], h.attend(changed, HEADS)[:-1])
    (gradient,) = gradients_of(weighted(h.attend(qkv, HEADS)[:-1]), [qkv])
    assert torch.equal(gradient[-1], torch.zeros(2, 3 * D, dtype=torch.float64))


def test_a_history_does_not_depend_on_the_others(layout):
    lengths = SETS["mixed"]
    whole = made(lengths)
    qkv = numbers(len(whole.values), 2, 3 * D)
    found = whole.attend(qkv, HEADS)
    for start, length in spans(lengths):
        alone = made([[length]])
        part = torch.cat([qkv[start : start + length], qkv[-1:]])
        torch.testing.assert_close(alone.attend(part, HEADS)[:-1], found[start : start + length], rtol=0, atol=1e-12)
