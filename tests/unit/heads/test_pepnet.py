"""PPNet equals its equations written out; its gates learn from the prior, and send the representation no gradient."""

import pytest
import torch

from tests.unit.heads.trained import losses_over_training
from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.load import parse
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.features import Features, FeaturesSpec, FieldSpec
from torchrec_mtl.heads.pepnet import PEPNet
from torchrec_mtl.model import build_model
from torchrec_mtl.testing import check_head

OUTPUTS = {"click": 1, "buy": 1, "spend": 2}
TASKS = tuple(OUTPUTS)
SPEC = FeaturesSpec(
    fields=tuple(
        FieldSpec(name, 3, side, name) for name, side in (("user", "user"), ("item", "item"), ("tab", "context"))
    ),
    sequences=(),
    dense=(),
)
B, D = 6, 5


def made(prior=("item", "user"), per_task=False, tower=(7, 4), norm="none"):
    torch.manual_seed(0)
    config = PEPNet.Config(prior=prior, tower=tower, gate=8, norm=norm)
    head = PEPNet.create(D, OUTPUTS, config, features=SPEC, binary=("click", "buy"))
    fields = {f.name: torch.randn(B, f.dim, requires_grad=True) for f in SPEC.fields}
    views = tuple(torch.randn(B, D, requires_grad=True) for _ in OUTPUTS) if per_task else None
    shared = torch.randn(B, D, requires_grad=True)
    return head, Representation(shared, views, Features(fields, {}, torch.zeros(B, 0), SPEC))


def gate(head, layer, k, representation):
    fields = representation.features.fields
    known = torch.cat([*(fields[name] for name in head.prior), representation.of_task(k)], 1)
    first, second = head.gates[layer].first, head.gates[layer].second
    hidden = torch.relu(known @ first.weight[k] + first.bias[k])
    return 2 * torch.sigmoid(hidden @ second.weight[k] + second.bias[k])


def written_out(head, k, representation):
    x = representation.of_task(k)
    for i, layer in enumerate(head.layers):
        (linear,) = layer.linears
        x = torch.relu(x @ linear.weight[k] + linear.bias[k]) * gate(head, i, k, representation)
    return x @ head.last.weight[k] + head.last.bias[k]


@pytest.mark.parametrize("per_task", [False, True])
@pytest.mark.parametrize("tower", [(7, 4), (4,)])
def test_logits_equal_the_equations(tower, per_task):
    head, representation = made(tower=tower, per_task=per_task)
    found = head(representation).logits
    for k, (task, width) in enumerate(OUTPUTS.items()):
        torch.testing.assert_close(found[task].view(B, -1), written_out(head, k, representation)[:, :width])


@pytest.mark.parametrize("task", [0, 2])
def test_gates_send_no_gradient_to_the_representation(task):
    head, representation = made()
    (found,) = torch.autograd.grad(head(representation).logits[TASKS[task]].sum(), representation.shared)
    x = representation.shared.detach().requires_grad_()
    h = x
    for i, layer in enumerate(head.layers):
        (linear,) = layer.linears
        h = torch.relu(h @ linear.weight[task] + linear.bias[task]) * gate(head, i, task, representation).detach()
    logit = (h @ head.last.weight[task] + head.last.bias[task])[:, : OUTPUTS[TASKS[task]]]
    (expected,) = torch.autograd.grad(logit.sum(), x)
    torch.testing.assert_close(found, expected)
    assert expected.abs().sum() > 0


def test_gates_train_the_embeddings_of_the_prior_alone():
    head, representation = made(prior=("user",))
    head(representation).logits["buy"].sum().backward()
    gradients = {name: x.grad for name, x in representation.features.fields.items()}
    assert gradients["user"].abs().sum() > 0
    assert gradients["item"] is None
    assert gradients["tab"] is None


def test_loss_trains_no_gate_of_another_task():
    head, representation = made()
    head(representation).logits["buy"].sum().backward()
    for gate_unit in head.gates:
        trained = gate_unit.first.weight.grad.abs().sum((1, 2)) > 0
        assert trained.tolist() == [False, True, False]


def test_a_gate_that_is_zero_leaves_the_tower_as_it_is():
    head, representation = made(tower=(4,))
    with torch.no_grad():
        head.gates[0].second.weight.zero_()
        head.gates[0].second.bias.zero_()
    plain = torch.relu(head.layers[0].linears[0](representation.shared))
    expected = head.last(plain)
    torch.testing.assert_close(head(representation).logits["spend"], expected[2])


def test_prior_is_by_default_all_of_users_and_items():
    assert made(prior=())[0].prior == ("user", "item")


def test_without_users_and_items_the_prior_must_be_named():
    raw = make_config("unused.parquet", run_dir="unused") | {"head": {"type": "pepnet"}}
    for feature in raw["features"]["sparse"]:
        del feature["side"]
    with pytest.raises(ValueError, match=r"head.prior: .*found user_id, item_id, tags.*name some, such as prior"):
        build_model(parse(raw), {}, tables="cpu")
    raw["head"]["prior"] = ["user_id"]
    assert build_model(parse(raw), {}, tables="cpu").objective.head.prior == ("user_id",)


def test_unknown_and_repeated_prior_is_refused():
    raw = make_config("unused.parquet", run_dir="unused")
    raw["head"] = {"type": "pepnet", "prior": ["usr_id", "item_id", "item_id"]}
    with pytest.raises(ValueError, match="usr_id") as caught:
        parse(raw)
    assert "head.prior: no sparse feature is called 'usr_id'. Did you mean 'user_id'?" in str(caught.value)
    assert "head.prior: 'item_id' is named more than once" in str(caught.value)


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize("outputs", [("watch",), ("click", "watch"), {"click": 1, "long_view": 1, "watch": 3}])
def test_keeps_the_promises_of_a_head(norm, outputs):
    check_head(PEPNet, PEPNet.Config(prior=("user_id",), tower=(8, 4), norm=norm), outputs=outputs, in_features=5)


def test_trains_in_a_whole_model():
    before, after = losses_over_training(PEPNet, PEPNet.Config(tower=(8,)))
    assert (after < before).all()
