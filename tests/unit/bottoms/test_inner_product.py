"""The cross layer equals its equation written out in loops, and refuses features of different widths in both places."""

import pytest
import torch

from torchrec_mtl.bottoms.inner_product import InnerProduct
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.features import DenseSpec, Features, FeaturesSpec, FieldSpec, Jagged
from torchrec_mtl.model import build_model
from torchrec_mtl.testing.subject import Subject, gradients_of, weighted

LENGTHS = {"seen": [3, 0, 1, 2], "liked": [0, 0, 0, 0]}  # one sequence is empty in a row, the other in all


def spec_of(num_fields=3, width=4, sequences=("seen", "liked"), num_dense=2):
    return FeaturesSpec(
        fields=tuple(FieldSpec(f"f{i}", width, "user", f"t{i}") for i in range(num_fields)),
        sequences=tuple(FieldSpec(s, width, "user", "t0", behavior=s, max_length=4) for s in sequences),
        dense=tuple(DenseSpec(f"x{i}", "user") for i in range(num_dense)),
    )


def features_of(spec, num_rows=4):
    torch.manual_seed(0)
    names = [f.name for f in spec.fields][::-1]  # the spec gives the order
    return Features(
        fields={name: torch.randn(num_rows, spec.fields[0].dim, requires_grad=True) for name in names},
        sequences={
            s.name: Jagged(torch.randn(sum(LENGTHS[s.name]), s.dim, requires_grad=True), torch.tensor(LENGTHS[s.name]))
            for s in spec.sequences
        },
        dense=torch.randn(num_rows, len(spec.dense), requires_grad=True),
        spec=spec,
    )


def build(spec, pooling="mean"):
    return InnerProduct(spec, ("click",), InnerProduct.Config(pooling=pooling))


def reference(features, pooling="mean"):
    """Each row's columns, one number after the other."""
    rows = []
    for b in range(features.dense.shape[0]):
        fields = [features.fields[f.name][b] for f in features.spec.fields]
        for s in features.spec.sequences:
            jagged = features.sequences[s.name]
            start, length = int(jagged.lengths[:b].sum()), int(jagged.lengths[b])
            total = sum((jagged.values[start + i] for i in range(length)), torch.zeros(s.dim))
            fields.append(total / length if pooling == "mean" and length else total)
        products = [sum(x * y for x, y in zip(left, right)) for left in fields for right in fields]
        rows.append(torch.stack([*products, *(x for field in fields for x in field), *features.dense[b]]))
    return torch.stack(rows)


def leaves(features):
    return [*features.fields.values(), *(s.values for s in features.sequences.values()), features.dense]


@pytest.mark.parametrize("pooling", ["mean", "sum"])
@pytest.mark.parametrize(
    "shape",
    [{}, {"num_fields": 1, "sequences": ()}, {"num_fields": 7, "width": 8}, {"sequences": (), "num_dense": 0}],
    ids=["sequences", "one_field", "wide", "fields_alone"],
)
def test_columns_and_gradients_equal_the_equation(shape, pooling):
    spec = spec_of(**shape)
    features, bottom = features_of(spec), build(spec, pooling)
    found, expected = bottom(features), reference(features, pooling)
    torch.testing.assert_close(found.shared, expected)
    assert bottom.out_features == found.shared.shape[1]
    assert found.features is features
    assert found.per_task is None
    mine, theirs = (gradients_of(weighted(x), leaves(features)) for x in (found.shared, expected))
    torch.testing.assert_close(mine, theirs)


def test_gradient_equals_differences():
    spec = spec_of(sequences=(), num_dense=0)
    bottom, fields = build(spec), [torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in spec.fields]

    def shared(*values):
        named = dict(zip((f.name for f in spec.fields), values))
        return bottom(Features(named, {}, torch.zeros(2, 0, dtype=torch.float64), spec)).shared

    assert torch.autograd.gradcheck(shared, fields)


def test_products_stand_before_fields_and_dense_columns():
    spec = FeaturesSpec(
        fields=(FieldSpec("b", 1, "user", "b"), FieldSpec("a", 1, "user", "a")),
        sequences=(FieldSpec("s", 1, "user", "a", behavior="s", max_length=2),),
        dense=(DenseSpec("x", "user"),),
    )
    features = Features(
        fields={"a": torch.tensor([[3.0]]), "b": torch.tensor([[2.0]])},
        sequences={"s": Jagged(torch.tensor([[4.0], [6.0]]), torch.tensor([2]))},
        dense=torch.tensor([[7.0]]),
        spec=spec,
    )
    products = [4.0, 6, 10, 6, 9, 15, 10, 15, 25]  # both triangles and the diagonal
    assert build(spec)(features).shared.tolist() == [[*products, 2, 3, 5, 7]]


def test_the_papers_fields_make_720_columns():
    spec = spec_of(num_fields=20, width=16, sequences=(), num_dense=0)
    assert build(spec).out_features == build(spec)(features_of(spec)).shared.shape[1] == 720


def test_one_field_gives_its_squared_norm():
    spec = spec_of(num_fields=1, sequences=(), num_dense=0)
    features = features_of(spec)
    torch.testing.assert_close(build(spec)(features).shared[:, 0], features.fields["f0"].square().sum(1))


def test_padding_leaves_the_rows_of_data_as_they_are():
    spec = spec_of()
    whole, bottom = features_of(spec), build(spec)
    padded = Features(
        fields={name: torch.cat([x, torch.zeros(2, 4)]) for name, x in whole.fields.items()},
        sequences={
            name: Jagged(s.values, torch.cat([s.lengths, s.lengths.new_zeros(2)]))
            for name, s in whole.sequences.items()
        },
        dense=torch.cat([whole.dense, torch.zeros(2, 2)]),
        spec=spec,
        valid=torch.tensor([1.0, 1, 1, 1, 0, 0]),
    )
    found = bottom(padded)
    torch.testing.assert_close(found.shared[:4], bottom(whole).shared)
    assert torch.equal(found.shared[4:], torch.zeros(2, bottom.out_features))
    assert found.valid is padded.valid


def test_different_widths_are_refused_by_the_constructor():
    spec = FeaturesSpec((FieldSpec("a", 4, "user", "a"), FieldSpec("b", 8, "user", "b")), (), ())
    with pytest.raises(ValueError, match=r"bottom: inner_product .* one dim \(found 4: a; 8: b\); give .* same dim"):
        build(spec)
    with pytest.raises(ValueError, match=r"bottom: inner_product multiplies embeddings, and no feature has one; list"):
        build(spec_of(num_fields=0, sequences=()))


def test_of_many_features_the_message_names_some():
    many = spec_of(num_fields=10, sequences=()).fields
    with pytest.raises(ValueError, match=r"found 4: f0, f1, f2, f3, f4, f5, f6, f7, and 2 more; 8: b\)"):
        build(FeaturesSpec((*many, FieldSpec("b", 8, "user", "b")), (), ()))


def config_of(*, widths=(8, 8, 8), head="shared_bottom"):
    raw = make_config("unused.parquet", run_dir="unused")
    for table, width in zip(raw["features"]["tables"], widths):
        table["dim"] = width
    return raw | {"bottom": {"type": "inner_product"}, "head": {"type": head}}


def test_different_widths_are_refused_by_the_config():
    with pytest.raises(ValueError, match="inner_product") as caught:
        parse(config_of(widths=(8, 16, 8)))
    assert (
        "bottom: inner_product multiplies all features with each other, so that their tables need one dim (found "
        "8: user_id, tags; 16: item_id, watched); give these tables the same dim, or use bottom: {type: concat}"
    ) in str(caught.value)


def test_a_table_that_is_not_there_is_reported_once():
    raw = config_of()
    raw["features"]["sparse"][2]["table"] = "tg"
    with pytest.raises(ValueError, match="'tg' is not in") as caught:
        parse(raw)
    assert "bottom" not in str(caught.value)


def test_features_without_embeddings_are_refused():
    raw = config_of()
    raw["features"] = {"dense": ["age"]}
    with pytest.raises(ValueError, match=r"bottom: inner_product multiplies embeddings, and no feature has one"):
        parse(raw)


@pytest.mark.parametrize(("head", "num_bottoms"), [("shared_bottom", 1), ("single_task", 3), ("stem", 4)])
def test_stands_under_heads_with_shared_and_with_own_tables(head, num_bottoms):
    config = parse(config_of(head=head))
    model = build_model(config, {}, tables="cpu")
    batch = Subject(type(model.objective.head), config.head, dict.fromkeys(config.task_names, 1), 1).batch()
    losses, _ = model(batch)
    losses.sum().backward()
    assert [b.out_features for b in model.objective.bottoms] == [4 * 4 + 4 * 8 + 3] * num_bottoms
    assert all(p.grad.abs().sum() > 0 for p in model.embeddings.parameters())
