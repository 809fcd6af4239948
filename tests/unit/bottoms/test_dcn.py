"""The cross network equals the equations of DCN and DCN-V2 written out, and starts and ends where it should."""

import math

import pytest
import torch

from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.bottoms.dcn import DCN
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.features import DenseSpec, Features, FeaturesSpec, FieldSpec, Jagged
from torchrec_mtl.heads.mmoe import MMoE
from torchrec_mtl.model import build_model
from torchrec_mtl.testing.subject import Subject, gradients_of, weighted

FORMS = ["matrix", "low_rank", "vector"]
SPEC = FeaturesSpec(
    fields=(FieldSpec("user_id", 2, "user", "user"), FieldSpec("item_id", 3, "item", "item")),
    sequences=(FieldSpec("seen", 3, "user", "item", behavior="seen", max_length=4),),
    dense=(DenseSpec("age", "user"),),
)
B, D, R = 5, 9, 2


def features_of(valid=None):
    torch.manual_seed(0)
    return Features(
        fields={f.name: torch.randn(B, f.dim, requires_grad=True) for f in SPEC.fields},
        sequences={"seen": Jagged(torch.randn(7, 3, requires_grad=True), torch.tensor([3, 0, 1, 2, 1]))},
        dense=torch.randn(B, 1, requires_grad=True),
        spec=SPEC,
        valid=valid,
    )


def build(form, **options):
    torch.manual_seed(1)
    rank = {"rank": R} if form == "low_rank" else {}
    bottom = DCN(SPEC, ("click",), DCN.Config(form=form, **rank, **options))
    for name, p in bottom.named_parameters():
        if ".bias." in name:
            torch.nn.init.normal_(p)  # zeros would hide where they stand
    return bottom


def written_out(cross, form, x_0):
    """One row x_0 [D] through the layers."""
    x = x_0
    for layer, b in enumerate(cross.bias):
        b = b.flatten()
        if form == "vector":
            x = torch.outer(x_0, x) @ cross.kernels[layer][:, 0] + b + x  # x_0 x^T w: DCN, Eq. 3
        else:
            low = form == "low_rank"
            w = cross.W_kernels[layer] @ cross.V_kernels[layer] if low else cross.kernels[layer]
            x = torch.diag(x_0) @ (w @ x + b) + x
    return x


def leaves(features):
    return [*features.fields.values(), features.sequences["seen"].values, features.dense]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"layers": 1}, {"pooling": "sum"}], ids=str)
def test_representation_and_gradients_equal_the_equations(form, options):
    bottom, features = build(form, **options), features_of()
    x_0 = Concat(SPEC, ("click",), Concat.Config(pooling=options.get("pooling", "mean")))(features).shared
    found, expected = bottom(features), torch.stack([written_out(bottom.cross, form, row) for row in x_0])
    torch.testing.assert_close(found.shared, expected)
    assert len(bottom.cross.bias) == options.get("layers", 3)
    assert bottom.out_features == found.shared.shape[1] == D
    assert found.features is features
    assert found.per_task is None
    of = [*leaves(features), *bottom.parameters()]
    for one, other in zip(*(gradients_of(weighted(x), of) for x in (found.shared, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_without_weights_the_columns_pass_as_they_are(form):
    bottom, features = build(form), features_of()
    with torch.no_grad():
        for p in bottom.parameters():
            p.zero_()
    assert torch.equal(bottom(features).shared, bottom.concat(features).shared)


@pytest.mark.parametrize("form", FORMS)
def test_layers_give_polynomials_of_one_degree_more(form):
    bottom, features = build(form, layers=2).double(), features_of()
    with torch.no_grad():
        for p in bottom.cross.bias:
            p.zero_()
        x = bottom.concat(features).shared.double()
        scales = torch.arange(5.0, dtype=torch.float64)
        values = torch.stack([bottom.cross(s * x) for s in scales])
    thirds = values.diff(n=3, dim=0)
    assert thirds.abs().max() > 1e-3
    torch.testing.assert_close(thirds[0], thirds[1])  # of a cubic they are constant


@pytest.mark.parametrize(("form", "weights"), [("matrix", D * D), ("low_rank", 2 * D * R), ("vector", D)])
def test_it_has_the_weights_that_the_options_say(form, weights):
    assert sum(p.numel() for p in build(form, layers=4).parameters()) == 4 * (weights + D)


def test_it_starts_xavier_normal_with_biases_of_zero():
    torch.manual_seed(0)
    spec = FeaturesSpec((FieldSpec("a", 400, "user", "a"),), (), ())
    for form in FORMS:
        bottom = DCN(spec, ("click",), DCN.Config(form=form))
        assert all((p == 0).all() for p in bottom.cross.bias)
        kernels = [p for name, p in bottom.named_parameters() if ".bias." not in name]
        for p in kernels:
            assert p.std().item() == pytest.approx(math.sqrt(2 / sum(p.shape)), rel=0.15)


@pytest.mark.parametrize("form", FORMS)
def test_a_row_depends_on_no_other(form):
    bottom, features = build(form), features_of(valid=torch.tensor([1.0, 1, 1, 0, 0]))
    x = bottom.concat(features).shared
    torch.testing.assert_close(bottom(features).shared[:3], bottom.cross(x[:3]))
    assert bottom(features).valid is features.valid


def test_it_can_be_built_without_memory():
    with torch.device("meta"):
        assert all(p.is_meta for p in build("matrix").parameters())


def config_of(bottom, head="mmoe"):
    raw = make_config("unused.parquet", run_dir="unused")
    return parse(raw | {"bottom": {"type": "dcn", **bottom}, "head": {"type": head}})


def test_a_rank_that_does_nothing_is_refused():
    message = "bottom.rank: without effect with form: vector; remove it, or set form: low_rank"
    with pytest.raises(ValueError, match="without effect") as caught:
        config_of({"form": "vector", "rank": 4})
    assert message in str(caught.value)
    assert config_of({"form": "vector"}).bottom.rank == 32
    assert config_of({"rank": 4}).bottom.rank == 4


@pytest.mark.parametrize("wrong", [{"form": "v2"}, {"layers": 0}, {"rank": 0}], ids=str)
def test_options_are_checked(wrong):
    with pytest.raises(ValueError, match=rf"bottom\.{next(iter(wrong))}"):
        config_of(wrong)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("head", ["mmoe", "single_task", "stem", "pepnet"])
def test_stands_under_heads_with_shared_and_with_own_tables(head, form):
    config = config_of({"form": form}, head)
    model = build_model(config, {}, tables="cpu")
    batch = Subject(type(model.objective.head), config.head, dict.fromkeys(config.task_names, 1), 1).batch()
    losses, _ = model(batch)
    losses.sum().backward()
    for bottom in model.objective.bottoms:
        assert all(p.grad.abs().sum() > 0 for p in bottom.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.embeddings.parameters())


def test_a_head_reads_its_width():
    assert MMoE(build("vector").out_features, ["click"]).in_features == D
