"""HTLNet against a dense reference written from the paper's equations, and its properties."""

import math
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.config.base import PluginConfig
from torchrec_mtl.config.load import parse
from torchrec_mtl.config.overrides import apply_overrides
from torchrec_mtl.config.tasks import TaskConfig
from torchrec_mtl.data.synthetic import make_config
from torchrec_mtl.features import Features, FeaturesSpec
from torchrec_mtl.heads.htlnet import HTLNet, InformationFusionUnit, LabelEmbeddingUnit, Temperature
from torchrec_mtl.model import build_model
from torchrec_mtl.noise import Noise

TASKS = ("click", "long_view", "watch")
B, D, H, L, TAU = 6, 5, 4, 3, 0.7


# What is passed down the funnel, and how: the ablations of the architecture.
PARTS = [
    {"leu": leu, "ifu_rep": rep, "ifu_mode": mode}
    for leu, rep, mode in product((True, False), (True, False), ("attention", "concat"))
]
MODES, STOPS = ("gumbel", "tempered", "raw"), ("source", "leu_output", "fused", "none")


def make_head(tasks=TASKS, **options) -> HTLNet:
    torch.manual_seed(0)
    head = HTLNet(D, tasks, HTLNet.Config(tower=(H, 3), label_dim=L, **options)).double()
    head.tau.fill_(TAU)
    return head


def make_inputs(*, per_task: bool = False) -> Representation:
    torch.manual_seed(1)
    noise = Noise(seed=3, step=7, rows=torch.arange(B), global_size=B)
    features = Features({}, {}, torch.zeros(B, 0), FeaturesSpec((), (), ()), noise=noise)
    views = tuple(torch.randn(B, D, dtype=torch.float64, requires_grad=True) for _ in TASKS) if per_task else None
    shared = torch.randn(B, D, dtype=torch.float64, requires_grad=True)
    return Representation(shared, views, features)


def affine(x, state, name):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def reference(state, e, label_weight, *, ifu_rep=True, leu=True, ifu_mode="attention"):
    """Sections 1.3 to 1.5: ``label_weight(t, z)`` is the weight of label 1."""
    reps, labels, logits = [], [], []
    for t in range(len(TASKS)):
        inputs = []
        for u, passed in enumerate([reps] * ifu_rep + [labels] * leu):
            if t and ifu_mode == "attention":
                x = torch.stack(passed, 1)
                h1, h2, h3 = (affine(x, state, f"fusions.{t - 1}.{u}.h{i}") for i in (1, 2, 3))
                a = torch.exp((h2 * h3).sum(-1) / math.sqrt(H))
                passed = [((a / a.sum(1, keepdim=True)).unsqueeze(2) * h1).sum(1)]
            inputs += passed
        inputs.append(e)
        rep = torch.relu(affine(torch.cat(inputs, 1), state, f"first.{t}.linears.0"))
        hidden = torch.relu(affine(rep, state, f"rest.{t}.linears.0"))
        logits.append(affine(hidden, state, f"last.{t}").squeeze(1))
        if t + 1 < len(TASKS):
            w = label_weight(t, logits[t]).unsqueeze(1)
            reps.append(rep)
            if leu:
                labels.append(torch.cat([w, 1 - w], 1) @ state[f"units.{t}.embedding"])
    return torch.stack(logits)


def gumbel(t, z):
    """The two-class Gumbel softmax, with any two Gumbels whose difference is the head's logistic noise."""
    noise = make_inputs().features.noise.uniform(f"htlnet/{TASKS[t]}")
    g0 = torch.full_like(z, 0.3)
    g1 = g0 + torch.logit(noise)
    p = torch.sigmoid(z)
    one, zero = torch.exp((p.log() + g1) / TAU), torch.exp(((1 - p).log() + g0) / TAU)
    return one / (one + zero)


def tempered(t, z):
    p = torch.sigmoid(z)
    return p ** (1 / TAU) / (p ** (1 / TAU) + (1 - p) ** (1 / TAU))


def raw(t, z):
    return torch.sigmoid(z)


def stacked(head, inputs):
    return torch.stack(list(head(inputs).logits.values()))


@pytest.mark.parametrize(
    ("mode", "training", "weight"),
    [
        ("gumbel", True, gumbel),
        ("gumbel", False, tempered),
        ("tempered", True, tempered),
        ("tempered", False, tempered),
        ("raw", True, raw),
        ("raw", False, raw),
    ],
)
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_forward_equals_the_equations(parts, mode, training, weight):
    head, inputs = make_head(leu_mode=mode, **parts).train(training), make_inputs()
    expected = reference(head.state_dict(), inputs.shared, weight, **parts)
    torch.testing.assert_close(stacked(head, inputs), expected, rtol=1e-6, atol=1e-6)


def test_each_tower_reads_its_own_representation():
    head, inputs = make_head().eval(), make_inputs(per_task=True)
    before = stacked(head, inputs)
    same = Representation(inputs.shared, tuple(inputs.shared for _ in TASKS))
    assert torch.equal(stacked(head, same), stacked(head, Representation(inputs.shared)))
    for t in range(len(TASKS)):
        changed = tuple(v + 1 if j == t else v for j, v in enumerate(inputs.per_task))
        after = stacked(head, Representation(inputs.shared, changed))
        assert torch.equal(before[:t], after[:t])
        assert (before[t] != after[t]).any()


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, (2 * H, 2 * H)),
        ({"leu": False}, (H, H)),
        ({"ifu_rep": False}, (H, H)),
        ({"leu": False, "ifu_rep": False}, (0, 0)),
        ({"ifu_mode": "concat"}, (H + L, 2 * (H + L))),
        ({"ifu_mode": "concat", "leu": False}, (H, 2 * H)),
        ({"ifu_mode": "concat", "ifu_rep": False}, (L, 2 * L)),
    ],
)
def test_ablations_change_what_a_tower_reads_and_nothing_else(options, width):
    whole, head = make_head().state_dict(), make_head(**options).state_dict()
    widths = [head[f"first.{t}.linears.0.weight"].shape[1] - D for t in range(3)]
    assert widths == [0, *width]
    gone = {
        *(k for k in whole if k.startswith("units.") and not options.get("leu", True)),
        *(k for k in whole if k.startswith("fusions.") and options.get("ifu_mode") == "concat"),
        # Where one of two sources is left, its unit is the first.
        *(k for k in whole if k.split(".")[0] == "fusions" and k.split(".")[2] == "1" and False in options.values()),
        *(k for k in whole if k.split(".")[0] == "fusions" and list(options.values()).count(False) == 2),
    }
    assert whole.keys() - gone == head.keys()
    resized = {k for k in head if whole[k].shape != head[k].shape}
    assert all(k.startswith(("first.1", "first.2", "fusions.")) for k in resized)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_every_combination_trains_with_finite_gradients_and_stops_where_it_says(parts, stop, mode):
    head, same = (make_head(leu_mode=mode, **parts, **s) for s in ({"stop_gradient_at": stop}, {}))
    inputs = make_inputs(per_task=True)
    for name, p in (*head.named_parameters(), *same.named_parameters()):
        if name.startswith(("first", "rest")) and name.endswith("bias"):
            p.data.fill_(3.0)  # no ReLU is off
    assert torch.equal(stacked(head, inputs), stacked(same, inputs))
    passes = parts["leu"] or parts["ifu_rep"]
    found = torch.autograd.grad(
        head(inputs).logits["watch"].sum(), inputs.per_task, allow_unused=True, materialize_grads=True
    )
    assert [bool(g.any()) for g in found] == [passes and stop == "none"] * 2 + [True]
    stacked(head, inputs).square().sum().backward()
    gradients = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
    assert all(g.isfinite().all() for g in gradients.values())
    trained = {name.split(".")[0] for name, g in gradients.items() if g.any()}
    frozen = {"fused": {"units", "fusions"}, "leu_output": {"units"}}.get(stop, set())
    assert trained == {name.split(".")[0] for name, _ in head.named_parameters()} - frozen


# Ablations of the paper (Tables 3 to 5, Fig. 4), by configuration alone; docs/gradient_rules.md lists the lines.
ABLATIONS = {
    "no label embedding": ["head.leu=false"],
    "no task representation": ["head.ifu_rep=false"],
    "no fusion": ["head.leu=false", "head.ifu_rep=false"],
    "concat": ["head.ifu_mode=concat"],
    "stop at leu_output": ["head.stop_gradient_at=leu_output"],
    "stop at fused": ["head.stop_gradient_at=fused"],
    "stop nowhere": ["head.stop_gradient_at=none"],
    "raw": ["head.leu_mode=raw"],
    "tempered": ["head.leu_mode=tempered"],
    "published temperature": ["head.temperature={schedule: steps}"],
    "rule off": ["gradient={type: sum}"],
    "direction only": ["gradient.gamma=0"],
    "magnitude only": ["gradient.alpha=0"],
    "shared bottom with the rule": ["head=shared_bottom"],
    "gradient surgery": ["gradient=pcgrad"],
    "metabalance": ["gradient={type: metabalance, core: watch_time}"],
}


def test_the_documents_list_the_ablations():
    text = Path(__file__).parents[3].joinpath("docs", "gradient_rules.md").read_text(encoding="utf-8")
    rows = text.split("| ablation | override |")[1].split("\n\n")[0].splitlines()[2:]
    assert [re.findall("`([^`]+)`", row.split("|")[2]) for row in rows] == list(ABLATIONS.values())


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_ablations_are_lines_of_a_config(ablation):
    raw = make_config("train.parquet", run_dir="runs/test")
    raw |= {"head": {"type": "htlnet", "tower": [4, 3]}, "gradient": {"type": "htlnet", "core": "watch_time"}}
    whole = parse(raw)
    assert apply_overrides(raw, ABLATIONS[ablation]) == []
    config = parse(raw)
    changed = {name for name in type(config).model_fields if getattr(config, name) != getattr(whole, name)}
    assert changed == {line.partition("=")[0].partition(".")[0] for line in ABLATIONS[ablation]}
    head = build_model(config, {}).objective.head
    assert (type(head) is HTLNet) == (config.head.type == "htlnet")


def gradients(head, task, inputs):
    """Return (parameters that ``task``'s loss reaches)."""
    head.zero_grad()
    head(inputs).logits[task].square().sum().backward()
    return {name for name, p in head.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}


@pytest.mark.parametrize(
    ("stop", "labels_train", "fusions_train", "goes_back"),
    [
        ("source", True, True, False),
        ("leu_output", False, True, False),
        ("fused", False, False, False),
        ("none", True, True, True),
    ],
)
def test_what_the_last_loss_trains(stop, labels_train, fusions_train, goes_back):
    head, inputs = make_head(stop_gradient_at=stop), make_inputs()
    trained = gradients(head, "watch", inputs)
    # The task's own tower, always.
    assert {"first.2.linears.0.weight", "rest.2.linears.0.weight", "last.2.weight"} <= trained
    for t in (0, 1):
        assert (f"units.{t}.embedding" in trained) == labels_train
        tower = {
            name for name in trained if name.split(".")[0] in {"first", "rest", "last"} and name.split(".")[1] == str(t)
        }
        assert bool(tower) == goes_back
    for u in (0, 1):
        # All three maps; of h2 the bias too, of the softmax's shift by h3's bias not.
        assert ({f"fusions.1.{u}.h{i}.weight" for i in (1, 2, 3)} <= trained) == fusions_train
    # The fusion of an earlier tower serves that tower only.
    assert any(name.startswith("fusions.0") for name in trained) == goes_back


@pytest.mark.parametrize("stop", ["source", "leu_output", "fused"])
def test_a_loss_reaches_the_boundary_through_its_own_view_only(stop):
    head, inputs = make_head(stop_gradient_at=stop), make_inputs(per_task=True)
    assert head.isolates_tasks
    for k, task in enumerate(TASKS):
        found = torch.autograd.grad(
            head(inputs).logits[task].sum(), inputs.per_task, allow_unused=True, materialize_grads=True
        )
        assert [bool((g != 0).any()) for g in found] == [j == k for j in range(3)]


def test_without_stop_gradient_the_last_loss_reaches_all_views():
    head, inputs = make_head(stop_gradient_at="none"), make_inputs(per_task=True)
    assert not head.isolates_tasks
    found = torch.autograd.grad(head(inputs).logits["watch"].sum(), inputs.per_task)
    assert all((g != 0).any() for g in found)


def test_single_task_is_a_plain_regressor():
    head, inputs = make_head(tasks=("watch",)), make_inputs()
    state = head.state_dict()
    hidden = torch.relu(
        affine(torch.relu(affine(inputs.shared, state, "first.0.linears.0")), state, "rest.0.linears.0")
    )
    torch.testing.assert_close(head(inputs).logits["watch"], affine(hidden, state, "last.0").squeeze(1))
    assert {name.split(".")[0] for name in state} == {"first", "rest", "last", "tau"}


def test_core_may_have_several_outputs():
    head = make_head(tasks={"click": 1, "long_view": 1, "watch": 3})
    assert head(make_inputs()).logits["watch"].shape == (B, 3)


def test_early_task_with_several_outputs_is_refused():
    with pytest.raises(ValueError, match=r"\['click'\] ask for more"):
        make_head(tasks={"click": 2, "watch": 1})


def test_config_refuses_a_regression_before_the_last_task():
    def task(name, kind):
        return TaskConfig(name=name, kind=kind, label=name, loss=PluginConfig(type="mse"))

    good = [task("click", "binary"), task("watch", "regression")]
    assert HTLNet.Config().problems(good) == []
    assert HTLNet.Config().problems([*good[:1], task("buy", "binary")]) == []
    (problem,) = HTLNet.Config().problems(good[::-1])
    assert "watch is a regression before the last task" in problem


def test_evaluation_is_deterministic_and_training_without_our_noise_is_not():
    head, inputs = make_head(), Representation(make_inputs().shared)
    head.train()
    assert not torch.equal(stacked(head, inputs), stacked(head, inputs))
    head.eval()
    assert torch.equal(stacked(head, inputs), stacked(head, inputs))


# The label embedding unit.


@given(logit=st.floats(-20, 20), tau=st.floats(0.1, 10), u0=st.floats(0.001, 0.999), u1=st.floats(0.001, 0.999))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_logistic_noise_is_the_difference_of_two_gumbels(logit, tau, u0, u1):
    unit = LabelEmbeddingUnit(L, "gumbel").double()
    z, g0, g1 = torch.tensor([logit]).double(), -math.log(-math.log(u0)), -math.log(-math.log(u1))
    noise = torch.sigmoid(torch.tensor([g1 - g0]).double())
    log_p, log_q = torch.nn.functional.logsigmoid(z), torch.nn.functional.logsigmoid(-z)
    weights = torch.softmax(torch.stack([(log_p + g1) / tau, (log_q + g0) / tau], 1), 1)
    torch.testing.assert_close(
        unit(z, torch.tensor(tau).double(), noise), weights @ unit.embedding, rtol=1e-6, atol=1e-6
    )


def test_cold_label_is_a_row_of_the_embedding():
    unit, logits = LabelEmbeddingUnit(L, "gumbel"), torch.tensor([-0.3, 0.2])
    cold = unit(logits, torch.tensor(1e-4), torch.tensor([0.4, 0.6]))
    torch.testing.assert_close(cold, unit.embedding.flip(0))


def test_at_temperature_one_without_noise_the_weight_is_the_probability():
    unit, logits = LabelEmbeddingUnit(L, "tempered"), torch.linspace(-3, 3, 7)
    plain = LabelEmbeddingUnit(L, "raw")
    plain.load_state_dict(unit.state_dict())
    assert torch.equal(unit(logits, torch.tensor(1.0), None), plain(logits, torch.tensor(9.0), None))


# The information fusion unit.


def test_fusion_of_one_input_is_its_first_map():
    unit, x = InformationFusionUnit(D, H), torch.randn(B, 1, D)
    torch.testing.assert_close(unit(x), unit.h1(x[:, 0]))
    assert torch.equal(unit.weights(x), torch.ones(B, 1))


def test_fusion_weights_sum_to_one_and_follow_the_order_of_the_inputs():
    torch.manual_seed(0)
    unit, x, order = InformationFusionUnit(D, H), torch.randn(B, 3, D), torch.tensor([2, 0, 1])
    torch.testing.assert_close(unit.weights(x).sum(1), torch.ones(B))
    torch.testing.assert_close(unit.weights(x[:, order]), unit.weights(x)[:, order])
    torch.testing.assert_close(unit(x[:, order]), unit(x))


# The temperature.


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0, 10), (0.2, 10 * 0.05**0.25), (0.4, 10 * 0.05**0.5), (0.8, 0.5), (0.9, 0.5), (1, 0.5)]
)
def test_temperature_falls_exponentially_over_the_first_part_of_training(fraction, expected):
    assert Temperature().at(fraction, step=123) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 10), (4_999, 10), (5_000, 9), (14_999, 8.1), (140_000, 10 * 0.9**28), (145_000, 0.5), (10**6, 0.5)],
)
def test_temperature_as_published_falls_by_steps(step, expected):
    assert Temperature(schedule="steps").at(fraction=0.5, step=step) == pytest.approx(expected)


def test_progress_sets_the_temperature_the_logits_are_made_with():
    head, inputs = make_head(leu_mode="tempered", temperature=Temperature(start=1.0, end=0.25, over=0.5)), make_inputs()
    head.set_progress(0.25, 3)
    assert head.tau.item() == pytest.approx(0.5)
    expected = reference(head.state_dict(), inputs.shared, lambda t, z: torch.sigmoid(z / 0.5))
    torch.testing.assert_close(stacked(head, inputs), expected)


@pytest.mark.parametrize("options", [{"tower": ()}, {"temperature": {"end": 0}}, {"stop_gradient_at": "nowhere"}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValidationError):
        HTLNet.Config(**options)
