"""EPNet equals its equation written out; its gate learns from the domain, and sends no gradient to the embeddings."""

import pytest
import torch

from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.bottoms.epnet import EPNet
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.features import DenseSpec, Features, FeaturesSpec, FieldSpec, Jagged
from torchrec_mtl.model import build_model
from torchrec_mtl.testing.subject import Subject

SPEC = FeaturesSpec(
    fields=(FieldSpec("tab", 2, "context", "tab"), FieldSpec("item_id", 3, "item", "item")),
    sequences=(FieldSpec("seen", 3, "user", "item", behavior="seen", max_length=4),),
    dense=(DenseSpec("age", "user"),),
)


def made(pooling="mean"):
    torch.manual_seed(0)
    features = Features(
        fields={f.name: torch.randn(3, f.dim, requires_grad=True) for f in SPEC.fields},
        sequences={"seen": Jagged(torch.randn(4, 3), torch.tensor([3, 0, 1]))},
        dense=torch.randn(3, 1),
        spec=SPEC,
    )
    return EPNet(SPEC, ("click",), EPNet.Config(domain=("tab",), hidden=4, pooling=pooling)), features


def factors(bottom, features, e):
    first, second = bottom.gate.first, bottom.gate.second
    hidden = torch.relu(torch.cat([features.fields["tab"], e], 1) @ first.weight.T + first.bias)
    return 2 * torch.sigmoid(hidden @ second.weight.T + second.bias)


@pytest.mark.parametrize("pooling", ["mean", "sum"])
def test_representation_equals_the_equation(pooling):
    bottom, features = made(pooling)
    e = Concat(SPEC, ("click",), Concat.Config(pooling=pooling))(features).shared
    found = bottom(features)
    torch.testing.assert_close(found.shared, e * factors(bottom, features, e))
    assert found.features is features
    assert found.per_task is None
    assert bottom.out_features == found.shared.shape[1] == 9


def test_gate_sends_gradient_to_the_domain_alone():
    bottom, features = made()
    e = bottom.concat(features).shared
    gate = factors(bottom, features, e.detach())
    bottom(features).shared.sum().backward()
    # d/de of e * gate, with the gate held.
    torch.testing.assert_close(features.fields["item_id"].grad, gate[:, 2:5].detach())
    through_gate = features.fields["tab"].grad - gate[:, :2].detach()
    assert through_gate.abs().sum() > 1e-3


def test_factors_lie_between_nothing_and_twice():
    bottom, features = made()
    with torch.no_grad():
        bottom.gate.second.bias[:4] = 100.0
        bottom.gate.second.bias[4:] = -100.0
    e = bottom.concat(features).shared
    expected = torch.cat([2 * e[:, :4], 0 * e[:, 4:]], 1)
    torch.testing.assert_close(bottom(features).shared, expected)


def test_domain_must_be_named_and_be_there():
    raw = make_config("unused.parquet", run_dir="unused")
    with pytest.raises(ValueError, match=r"bottom.domain"):
        parse(raw | {"bottom": {"type": "epnet"}})
    with pytest.raises(ValueError, match=r"bottom.domain: no sparse feature is called 'tag'. Did you mean 'tags'\?"):
        parse(raw | {"bottom": {"type": "epnet", "domain": ["tag"]}})
    with pytest.raises(ValueError, match=r"bottom.domain: 'tags' is named more than once"):
        parse(raw | {"bottom": {"type": "epnet", "domain": ["tags", "tags"]}})


@pytest.mark.parametrize("head", ["shared_bottom", "single_task", "stem", "pepnet"])
def test_stands_under_heads_with_shared_and_with_own_tables(head):
    raw = make_config("unused.parquet", run_dir="unused")
    config = parse(raw | {"bottom": {"type": "epnet", "domain": ["tags"]}, "head": {"type": head}})
    model = build_model(config, {}, tables="cpu")
    batch = Subject(type(model.objective.head), config.head, dict.fromkeys(config.task_names, 1), 1).batch()
    losses, _ = model(batch)
    losses.sum().backward()
    for bottom in model.objective.bottoms:
        assert all(p.grad.abs().sum() > 0 for p in bottom.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.embeddings.parameters())
