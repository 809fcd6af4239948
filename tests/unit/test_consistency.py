"""Gates and orders against hurdle and hinge written out row by row, and through whole models."""

import math

import pytest
import torch
from torch.distributions import LogNormal
from torch.nn.functional import logsigmoid, softplus
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.config.load import dump, parse
from torchrec_mtl.config.text import read_yaml
from torchrec_mtl.data.batch import Batch
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.model import build_model
from torchrec_mtl.training.evaluation import evaluate

B, TASKS = 12, ("click", "long_view", "watch_time")
CLICK, LONG, WATCH = range(3)
ORDER = "long_view<=click"
HTLNET = {"type": "htlnet", "tower": [6, 4], "leu_mode": "tempered"}
PLAIN = {"type": "shared_bottom", "shared": [6], "tower": [4]}
RULE = {"type": "htlnet", "core": "watch_time", "alpha": 1.0, "gamma": 0.5}


def raw_config(*, click=None, long=None, watch=None, head=HTLNET, gradient=None):
    """One table; ``click``, ``long``, ``watch`` are further keys of the tasks."""
    raw = make_config("train.parquet", run_dir="runs/test")
    table, feature = {"name": "user", "rows": B, "dim": 4}, {"name": "user_id", "table": "user"}
    raw["features"] = {"tables": [table], "sparse": [feature], "dense": ["age"]}
    for task, more in zip(raw["tasks"], (click, long, watch)):
        task.update(more or {})
    return raw | {"head": head, "gradient": gradient or {"type": "sum"}}


def make_model(**options):
    model = build_model(parse(raw_config(**options)), {}, tables="cpu")
    g = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.copy_(torch.randn(p.shape, generator=g) * 0.7)
    return model.train()


def make_batch(labels=None, weights=None) -> Batch:
    """B rows of B users: no row of the table is looked up twice."""
    g = torch.Generator().manual_seed(1)
    if labels is None:
        click = (torch.arange(B) % 3 > 0).float()
        watch = torch.where(click > 0, torch.rand(B, generator=g) * 4 + 0.1, 0.0)
        labels = torch.stack([click, click * (torch.arange(B) % 2), watch], 1)
    return Batch(
        dense=torch.randn(B, 1, generator=g),
        sparse=KeyedJaggedTensor(["user_id"], torch.randperm(B, generator=g), lengths=torch.ones(B, dtype=torch.int32)),
        sequences=KeyedJaggedTensor([], torch.zeros(0, dtype=torch.int64), lengths=torch.zeros(0, dtype=torch.int32)),
        labels=labels,
        weights=torch.ones_like(labels) if weights is None else weights,
        valid=torch.ones(B),
        rows=torch.arange(B),
        ids={},
        step=0,
        global_size=B,
    )


def logits_of(model) -> dict:
    """Filled by the model's next forward: logits by task, whose gradients are kept."""
    found = {}

    def keep(_module, _inputs, out):
        for task, logits in out.logits.items():
            if logits.requires_grad:
                logits.retain_grad()
            found[task] = logits

    model.objective.head.register_forward_hook(keep)
    return found


# The gate.

GATE = {"gate": "click", "loss": {"type": "lognormal", "min_sigma": 0.01, "max_sigma": 1e6}}


def hurdle(batch, z_click, z_watch):
    """Ten lines: -log p(y) of a hurdle with a lognormal, in two sums, each over its own weights."""
    zero = positive = torch.zeros(())
    opened = total = 0.0
    for i in range(B):
        (y, _, amount), (w, _, v) = batch.labels[i], batch.weights[i]
        zero = zero - w * (logsigmoid(z_click[i]) if y > 0 else logsigmoid(-z_click[i]))
        total += w
        if y > 0 and w > 0:
            sigma = 0.01 + softplus(z_watch[i, 1] + math.log(math.expm1(0.99)))  # 1 for a logit of 0
            density = LogNormal(z_watch[i, 0], sigma).log_prob(amount)
            positive, opened = positive - v * density, opened + v
    return torch.stack([zero / total, positive / max(opened, 1e-9)])


@pytest.mark.parametrize("weighted", [False, True])
def test_gated_losses_are_those_of_a_hurdle(weighted):
    batch = make_batch()
    if weighted:
        weights = torch.rand(B, 3, generator=torch.Generator().manual_seed(2)) * 2
        weights[[1, 4], CLICK], weights[5, WATCH] = 0.0, 0.0
        batch = make_batch(weights=weights)
    model = make_model(watch=GATE)
    logits = logits_of(model)
    losses, _ = model(batch)
    losses[[CLICK, WATCH]].sum().backward()
    z = [logits[t].detach().requires_grad_() for t in ("click", "watch_time")]
    expected = hurdle(batch, *z)
    torch.testing.assert_close(losses[[CLICK, WATCH]], expected.detach(), rtol=1e-4, atol=1e-5)
    expected.sum().backward()
    for task, reference in zip(("click", "watch_time"), z):
        torch.testing.assert_close(logits[task].grad, reference.grad, rtol=1e-4, atol=1e-5)


def test_loss_weights_are_zero_where_the_gate_is_not_known_to_be_open():
    model = make_model(watch=GATE)
    labels = torch.tensor([[1.0, 0, 5], [0, 0, 0], [1, 1, 7], [1, 0, 2]])
    weights = torch.tensor([[1.0, 1, 1], [1, 1, 1], [0, 1, 1], [2, 1, 0.5]])
    found = model.objective.consistency.loss_weights(labels, weights)
    assert found.tolist() == [[1, 1, 1], [1, 1, 0], [0, 1, 0], [2, 1, 0.5]]
    plain = make_model().objective.consistency
    assert plain.loss_weights(labels, weights) is weights


@pytest.mark.parametrize("click", [{}, {"loss": {"type": "bce", "pos_weight": 5.0}}], ids=["bce", "pos_weight"])
def test_prediction_is_the_mean_of_the_hurdle(click):
    model = make_model(watch={**GATE, "loss": {"type": "gamma"}}, click=click).eval()
    logits = logits_of(model)
    _, out = model(make_batch())
    odds = logits["click"].exp() / (5.0 if click else 1.0)  # what pos_weight put in, predictions take out
    p = odds / (1 + odds)
    mean = model.objective.losses[WATCH].predict(logits["watch_time"])
    torch.testing.assert_close(out.predictions[:, CLICK], p)
    torch.testing.assert_close(out.predictions[:, WATCH], p * mean)


def test_metrics_see_all_rows_and_the_loss_only_those_behind_the_gate():
    config = parse(raw_config(watch={**GATE, "loss": {"type": "gamma"}}))
    model, batch = make_model(watch={**GATE, "loss": {"type": "gamma"}}).eval(), make_batch()
    _, out = model(batch)
    assert torch.equal(out.weights, batch.weights)
    found = evaluate([out], config.tasks).tasks["watch_time"]
    assert found["count"] == B
    error = (out.predictions[:, WATCH] - batch.labels[:, WATCH]).square().mean().sqrt()
    assert found["rmse"] == pytest.approx(error.item(), rel=1e-5)
    assert out.weight_sums[WATCH] == batch.labels[:, CLICK].sum() < B


def test_gated_loss_reaches_neither_the_tower_of_the_gate_nor_another_view():
    model = make_model(watch=GATE, gradient=RULE)
    head, shared = model.objective.head, []
    assert model.objective._can_fan_out
    head.register_forward_hook(lambda _m, inputs, _o: shared.extend(inputs[0].per_task))
    losses, _ = model(make_batch())
    tower = [p for part in (head.first, head.rest, head.last) for p in part[CLICK].parameters()]
    found = torch.autograd.grad(losses[WATCH], [*tower, *shared[:WATCH]], allow_unused=True, retain_graph=True)
    assert all(g is None or not g.any() for g in found)
    losses.sum().backward()
    assert model.objective.boundary.gramian is not None


@pytest.mark.parametrize("gradient", [{"type": "sum"}, RULE], ids=lambda g: g["type"])
@pytest.mark.parametrize("loss", ["mse", "gamma", "lognormal", "tweedie"])
def test_a_batch_behind_closed_gates_has_loss_zero_and_finite_gradients(loss, gradient):
    labels = torch.zeros(B, 3)
    model = make_model(watch={"gate": "click", "loss": {"type": loss}}, gradient=gradient)
    losses, out = model(make_batch(labels))
    losses.sum().backward()
    assert losses[WATCH] == out.losses[WATCH] == 0
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(g.isfinite().all() for g in gradients.values())
    assert not gradients[f"objective.head.last.{WATCH}.weight"].any()
    assert gradients[f"objective.head.last.{CLICK}.weight"].any()


# The order.

ORDERED = {"order": {"below": "click", "weight": 0.7}}


def hinge(p, q, weights):
    """Mean over rows on which both tasks are defined of how much p is above q."""
    rows = [i for i in range(B) if weights[i, CLICK] > 0 and weights[i, LONG] > 0]
    return sum(max(0.0, (p[i] - q[i]).item()) for i in rows) / len(rows)


@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("pos_weight", [1.0, 4.0])
@pytest.mark.parametrize("head", [HTLNET, PLAIN], ids=lambda h: h["type"])
def test_penalty_is_the_mean_excess_over_the_rows_of_both_tasks(head, pos_weight, space):
    batch = make_batch()
    if space:
        batch = make_batch(weights=torch.stack([torch.ones(B), 3 * batch.labels[:, CLICK], torch.ones(B)], 1))
    model = make_model(long={**ORDERED, "loss": {"type": "bce", "pos_weight": pos_weight}}, head=head)
    logits = logits_of(model)
    losses, out = model(batch)
    assert out.names == (*TASKS, ORDER)
    p = torch.sigmoid(logits["long_view"].detach() - math.log(pos_weight))
    q = torch.sigmoid(logits["click"].detach())
    expected = hinge(p, q, batch.weights)
    assert expected > 0
    assert out.losses[3].item() == pytest.approx(expected, rel=1e-5)  # as logged: without the weight
    assert losses[3].item() == pytest.approx(0.7 * expected, rel=1e-5)
    losses[3].backward()
    upper, below = logits["long_view"].grad, logits["click"].grad
    violated = (p > q) & (batch.weights > 0)[:, [CLICK, LONG]].all(1)
    # Descent goes against the gradient: p down and p_below up, in the rows that break the order only.
    assert torch.equal(upper > 0, violated)
    assert torch.equal(below < 0, violated)
    assert logits["watch_time"].grad is None or not logits["watch_time"].grad.any()


def test_order_brings_the_probabilities_into_order():
    model, batch = make_model(long={"order": {"below": "click", "weight": 50.0}}, head=PLAIN), make_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    excess = []
    for _ in range(60):
        losses, out = model(batch)
        excess.append(out.losses[3].item())
        optimizer.zero_grad()
        losses[3].backward()
        optimizer.step()
    assert excess[0] > 0.05
    assert excess[-1] < 0.1 * excess[0]


@pytest.mark.parametrize("head", [HTLNET, PLAIN], ids=lambda h: h["type"])
def test_the_rule_leaves_the_penalty_alone(head):
    """Algorithm 1 on the tasks' gradients of the table itself, plus the penalty's; above it the plain sum."""
    plain, model = make_model(long=ORDERED, head=head), make_model(long=ORDERED, head=head, gradient=RULE)
    losses, _ = plain(make_batch())
    table = next(p for name, p in plain.named_parameters() if "user" in name)
    each = [torch.autograd.grad(z, table, retain_graph=True)[0].flatten() for z in losses]
    core, total = each[WATCH], each[WATCH] + each[3]
    for g in (each[CLICK], each[LONG]):
        g = g - (g @ core).clamp(max=0) / (core @ core) * core
        total = total + (0.5 * (core.norm() / g.norm()).clamp(0.1, 10) + 0.5) * g
    losses.sum().backward()
    assert not model.objective._can_fan_out
    model(make_batch())[0].sum().backward()
    for (name, a), (_, b) in zip(model.named_parameters(), plain.named_parameters()):
        if "user" in name:
            torch.testing.assert_close(a.grad, total.view_as(a), rtol=1e-4, atol=1e-6)
            assert not torch.allclose(a.grad, b.grad)
        else:
            torch.testing.assert_close(a.grad, b.grad)
    assert model.objective.boundary.gramian.shape == (1, 3, 3)


def test_a_rule_that_balances_losses_leaves_the_penalty_alone():
    plain, model = make_model(long=ORDERED), make_model(long=ORDERED, gradient={"type": "famo"})
    expected, found = plain(make_batch())[0], model(make_batch())[0]
    assert found[3] == expected[3] > 0
    assert not torch.allclose(found[:3], expected[:3])


def test_a_penalty_is_on_in_phases_that_train_both_of_its_tasks():
    model = make_model(long=ORDERED)
    for tasks, is_on in ((None, True), (["click", "long_view"], True), (["long_view", "watch_time"], False)):
        model.objective.activate(tasks)
        assert bool(model(make_batch())[0][3] > 0) == is_on


def test_gate_and_order_survive_a_dumped_config():
    config = parse(raw_config(watch=GATE, long=ORDERED))
    raw, problems = read_yaml(dump(config))
    assert problems == []
    again = parse(raw)
    assert again == config
    assert (again.tasks[WATCH].gate, again.tasks[LONG].order.below, again.tasks[LONG].order.weight) == (
        "click",
        "click",
        0.7,
    )
    one, other = (build_model(c, {}).objective for c in (config, again))
    assert one.names == other.names == (*TASKS, ORDER)
    assert one.active.tolist() == other.active.tolist() == pytest.approx([1, 1, 1, 0.7])
    assert one.consistency.gate_of.tolist() == other.consistency.gate_of.tolist() == [CLICK, LONG, CLICK]
    assert one.consistency.gated.tolist() == other.consistency.gated.tolist() == [False, False, True]
