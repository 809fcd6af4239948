"""Features are read by key; own tables go by plain names; sequences are pooled row by row."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mtl.features import DenseSpec, Features, FeaturesSpec, FieldSpec, Jagged


def make_features() -> Features:
    torch.manual_seed(0)
    fields = [
        FieldSpec("user_id", 2, "user", "user"),
        FieldSpec("user_id@click", 2, "user", "user@click", task="click"),
        FieldSpec("user_id@buy", 2, "user", "user@buy", task="buy"),
        FieldSpec("item_id", 3, "item", "item"),
        FieldSpec("item_id@click", 3, "item", "item@click", task="click"),
    ]
    sequences = [
        FieldSpec("seen", 3, "user", "item", behavior="seen", target="item_id", max_length=4),
        FieldSpec(
            "seen@click", 3, "user", "item@click", "click", behavior="seen", target="item_id@click", max_length=4
        ),
    ]
    lengths = torch.tensor([2, 0, 1])
    return Features(
        fields={f.name: torch.randn(3, f.dim) for f in fields},
        sequences={s.name: Jagged(torch.randn(3, s.dim), lengths) for s in sequences},
        dense=torch.randn(3, 3),
        spec=FeaturesSpec(
            tuple(fields),
            tuple(sequences),
            (DenseSpec("age", "user"), DenseSpec("price", "item"), DenseSpec("hour", "context")),
        ),
        valid=torch.ones(3),
    )


def test_selecting_nothing_in_particular_keeps_all():
    features = make_features()
    kept = features.select()
    assert kept.spec == features.spec
    assert list(kept.fields) == list(features.fields)
    assert kept.dense is features.dense
    assert kept.valid is features.valid


def test_names_keep_fields_sequences_and_dense_columns():
    features = make_features()
    kept = features.select(names=["seen", "hour", "item_id", "unheard_of"])
    assert kept.fields == {"item_id": features.fields["item_id"]}
    assert kept.sequences == {"seen": features.sequences["seen"]}
    assert torch.equal(kept.dense, features.dense[:, 2:])
    assert [d.name for d in kept.spec.dense] == ["hour"]


@pytest.mark.parametrize(
    ("side", "fields", "sequences", "columns"),
    [
        ("user", ["user_id", "user_id@click", "user_id@buy"], ["seen", "seen@click"], [0]),
        ("item", ["item_id", "item_id@click"], [], [1]),
        ("context", [], [], [2]),
    ],
)
def test_sides(side, fields, sequences, columns):
    features = make_features()
    kept = features.select(side=side)
    assert list(kept.fields) == [f.name for f in kept.spec.fields] == fields
    assert list(kept.sequences) == [s.name for s in kept.spec.sequences] == sequences
    assert torch.equal(kept.dense, features.dense[:, columns])


def test_a_task_sees_its_own_tables_under_plain_names():
    features = make_features()
    kept = features.select(task="click")
    assert kept.fields == {name: features.fields[f"{name}@click"] for name in ("user_id", "item_id")}
    assert kept.sequences == {"seen": features.sequences["seen@click"]}
    assert kept.spec.sequences[0].target == "item_id"
    assert kept.spec.fields[0].table == "user@click"
    assert kept.dense is features.dense
    assert list(features.select(task="buy").fields) == ["user_id"]


def test_gaps_stay_with_their_sequence():
    features = make_features()
    gaps = torch.tensor([3, 0, 31])
    dated = {name: dataclasses.replace(x, gaps=gaps) for name, x in features.sequences.items()}
    spec = tuple(dataclasses.replace(s, gaps=True) for s in features.spec.sequences)
    features = dataclasses.replace(features, sequences=dated, spec=dataclasses.replace(features.spec, sequences=spec))
    for kept in (features.select(task="click"), features.select(shared=True), features.select(side="user")):
        assert kept.spec.sequences[0].gaps
        assert kept.sequences["seen"].gaps is gaps


def test_names_and_side_of_a_task_are_plain():
    features = make_features()
    assert list(features.select(task="click", names=["item_id", "seen"]).fields) == ["item_id"]
    assert list(features.select(task="click", names=["seen"]).sequences) == ["seen"]
    assert list(features.select(task="click", side="user").fields) == ["user_id"]


def test_names_of_shared_tables_leave_own_ones_out():
    assert list(make_features().select(names=["user_id"]).fields) == ["user_id"]


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8), how=st.sampled_from(["mean", "sum"]))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_pooling_equals_a_loop_over_rows(lengths, how):
    values = torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(0))
    found = Jagged(values, torch.tensor(lengths)).pooled(how)
    assert torch.equal(found, Jagged(values, torch.tensor(lengths), torch.arange(sum(lengths))).pooled(how))
    assert found.shape == (len(lengths), 3)
    for row, piece in zip(found, values.split(lengths)):
        expected = torch.zeros(3) if len(piece) == 0 else piece.mean(0) if how == "mean" else piece.sum(0)
        torch.testing.assert_close(row, expected)


def test_gradient_of_pooling_is_spread_over_the_row():
    values = torch.randn(3, 2, requires_grad=True)
    Jagged(values, torch.tensor([2, 0, 1], dtype=torch.int32)).pooled("mean").sum().backward()
    assert torch.equal(values.grad, torch.tensor([[0.5, 0.5], [0.5, 0.5], [1.0, 1.0]]))
