"""DIN equals its equation in loops, with the activation unit's first layer on [e, q, e - q, e * q] in one matrix."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

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
from torchrec_mtl.bottoms.din import DIN
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.features import FieldSpec
from torchrec_mtl.testing.subject import gradients_of, weighted

FIRST = 3 + WIDTH  # columns of the fields, which come first


def build(spec=None, unit=(5, 3), dtype=torch.float64):
    torch.manual_seed(0)
    return randomised(DIN(spec or spec_of(), TASKS, DIN.Config(unit=unit)), dtype)


def first_layer(unit):
    """[h, 4 d] on [e, q, e - q, e * q]: what the differences weigh can be any share of the rest."""
    of_e, of_product = unit.of_event.weight.split(WIDTH, dim=1)
    of_difference = torch.linspace(-1, 1, of_e.numel(), dtype=of_e.dtype).view_as(of_e)
    return torch.cat([of_e - of_difference, unit.of_target.weight + of_difference, of_difference, of_product], dim=1)


def activation(unit, e, q, j):
    """a(e, q), one number."""
    x = first_layer(unit) @ torch.cat([e, q, e - q, e * q]) + unit.of_sequence[j, 0]
    for m in unit.rest:
        x = torch.where(x > 0, x, m.weight * x) if isinstance(m, nn.PReLU) else m.weight @ x + m.bias
    return x


def one_by_one(bottom, features):
    """[B, D], row by row, event by event."""
    rows, with_target = [], [s.name for s in features.spec.sequences if s.target]
    for b in range(len(features.dense)):
        parts = [features.fields[f.name][b] for f in features.spec.fields]
        for s in features.spec.sequences:
            jagged = features.sequences[s.name]
            start, length = int(jagged.lengths[:b].sum()), int(jagged.lengths[b])
            v = jagged.values[:0].sum(0)
            for e in jagged.values[start : start + length]:
                if s.target is None:
                    v = v + e / length
                else:
                    q = features.fields[s.target][b]
                    v = v + activation(bottom.unit, e, q, with_target.index(s.name)) * e
            parts.append(v)
        rows.append(torch.cat([*parts, features.dense[b]]))
    return torch.stack(rows)


@pytest.mark.parametrize("lengths", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("unit", [(5,), (5, 3), (4, 3, 2)], ids=str)
def test_columns_and_gradients_equal_loops(lengths, unit):
    bottom, features = build(unit=unit), features_of(spec_of(), lengths)
    found, expected = bottom(features), one_by_one(bottom, features)
    torch.testing.assert_close(found.shared, expected)
    assert bottom.out_features == found.shared.shape[1]
    assert found.per_task is None
    assert found.features is features
    of = [*leaves(features), *bottom.parameters()]
    for one, other in zip(*(gradients_of(weighted(x), of) for x in (found.shared, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_targets_may_differ_from_sequence_to_sequence():
    spec = spec_of(sequence("clicked"), sequence("bought", target="other"))
    spec = replace(spec, fields=(*spec.fields, FieldSpec("other", WIDTH, "item", "item")))
    bottom, features = build(spec), features_of(spec)
    torch.testing.assert_close(bottom(features).shared, one_by_one(bottom, features))


def test_an_empty_history_gives_zeros():
    found = build()(features_of(spec_of())).shared
    for j, name in enumerate(LENGTHS):
        columns = found[:, FIRST + j * WIDTH : FIRST + (j + 1) * WIDTH]
        assert torch.equal((columns == 0).all(1), torch.tensor(LENGTHS[name]) == 0)


def test_without_any_event_the_unit_learns_nothing():
    bottom, features = build(), features_of(spec_of(), EMPTY)
    for gradient in gradients_of(weighted(bottom(features).shared), list(bottom.parameters())):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_weights_are_not_normalised():
    """Twice the same event counts twice: intensities are kept."""
    spec = spec_of(sequence("clicked"))
    bottom, features = build(spec), features_of(spec, {"clicked": [2, 1]})
    with torch.no_grad():
        for same in (features.sequences["clicked"].values, features.fields["item_id"]):
            same[:] = same[0].clone()
    twice, once = bottom(features).shared[:, FIRST : FIRST + WIDTH]
    assert once.abs().min() > 0
    torch.testing.assert_close(twice, 2 * once)


def test_the_unit_knows_which_sequence_it_looks_at():
    spec = spec_of(sequence("clicked"), sequence("bought"))
    bottom, features = build(spec), features_of(spec)
    assert bottom.unit.of_sequence.shape[0] == 2
    before = bottom(features).shared
    with torch.no_grad():
        bottom.unit.of_sequence[1] += 1
    moved = (bottom(features).shared != before).any(0).nonzero().flatten().tolist()
    assert moved == list(range(FIRST + WIDTH, FIRST + 2 * WIDTH))


def test_at_first_it_treats_sequences_alike():
    spec = spec_of(sequence("clicked"), sequence("bought"))
    assert torch.equal(DIN(spec, TASKS, DIN.Config()).unit.of_sequence, torch.zeros(2, 1, 64))


def test_a_row_depends_on_no_other_and_not_on_padding():
    bottom, features = build(), features_of(spec_of())
    whole = bottom(features).shared
    for b in range(NUM_ROWS):
        torch.testing.assert_close(bottom(rows_of(features, [b])).shared[0], whole[b], rtol=0, atol=1e-14)
    torch.testing.assert_close(bottom(padded(features, 2)).shared[:NUM_ROWS], whole, rtol=0, atol=1e-14)


def test_one_unit_serves_all_sequences():
    sizes = [
        sum(p.numel() for p in build(spec_of(*map(sequence, names)), (5, 3)).parameters()) for names in ("ab", "abc")
    ]
    assert sizes[1] - sizes[0] == 5  # its bias for the sequence
    layers = (2 * WIDTH + WIDTH) * 5 + 5 + (5 + 1) * 3 + 3 + (3 + 1)
    assert sizes[0] == layers + 2 * 5


@pytest.mark.parametrize(
    ("sequences", "targets", "message"),
    [
        ({}, {}, "din reads behaviour sequences; list them under features.sequences, or use concat"),
        ({"seen": 8}, {}, "unit: attention needs the item that is scored, and no sequence names one; set features."),
        ({"seen": 8}, {"seen": "user_id"}, "unit: sequence 'seen' has dim 8 and its target 'user_id' 4, which cannot"),
    ],
)
def test_features_that_do_not_fit_are_refused(sequences, targets, message):
    (found,) = DIN.Config().feature_problems({"item_id": 8, "user_id": 4}, sequences, targets)
    assert found.startswith(message)


def test_the_constructor_refuses_them_too():
    with pytest.raises(ValueError, match=re.escape("bottom: unit: attention needs the item that is scored")):
        DIN(spec_of(sequence("seen", target=None)), TASKS, DIN.Config())


def test_sequences_of_several_widths_are_refused():
    spec = spec_of(sequence("clicked"), sequence("bought", target="other", width=6))
    spec = replace(spec, fields=(*spec.fields, FieldSpec("other", 6, "item", "other")))
    with pytest.raises(ValueError, match="dim"):
        DIN(spec, TASKS, DIN.Config())


def test_the_config_refuses_them_too():
    raw = make_config("unused.parquet", run_dir="unused") | {"bottom": {"type": "din"}}
    parse(raw)
    del raw["features"]["sequences"][0]["target"]
    with pytest.raises(ValueError, match=r"bottom\.unit: attention needs the item that is scored"):
        parse(raw)
    raw["features"]["sequences"] = []
    with pytest.raises(ValueError, match=r"bottom: din reads behaviour sequences; list them under features\.sequences"):
        parse(raw)
