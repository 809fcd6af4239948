"""DMMP as a whole: what it returns, its losses, and what these train."""

import itertools
from dataclasses import replace

import pytest
import torch

from tests.unit.heads.retrieval_head import (
    THREE,
    TWO,
    B,
    features_of,
    gradient_of,
    inputs,
    labels_and_weights,
    made,
    sides_from,
    under_a_bottom,
)
from tests.unit.heads.trained import losses_over_training
from torchrec_mtl.heads.dmmp import DMMP
from torchrec_mtl.heads.in_batch import in_batch_softmax
from torchrec_mtl.testing.subject import Subject

KINDS = ("kl", "soft_label", "logit_mse")
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def losses_of(head, given=None, labels=None):
    """Term -> loss; all rows weigh 1."""
    given, ones = given or inputs(), torch.ones(B, head.num_tasks, dtype=torch.float64)
    terms = head.terms(head(given), ones if labels is None else labels, ones)
    return {name: (term.value * term.weight).sum() / term.weight.sum() for name, term in terms.items()}


def bce(p, y):
    return -y * p.log() - (1 - y) * (1 - p).log()


# What it returns


@pytest.mark.parametrize("options", [{}, {"teacher": "none"}, {"layout": "two_towers", "gate": "even"}], ids=str)
@pytest.mark.parametrize("tasks", [("click",), TWO, THREE], ids=len)
def test_logits_are_the_students_and_the_rest_is_predicted_beside_them(tasks, options):
    head, given = made(tasks, **options), inputs()
    out, encoded = head(given), head.student(given.features)
    assert tuple(out.logits) == tasks
    assert torch.equal(torch.stack([*out.logits.values()]), encoded.scores())
    of_teacher = [] if options.get("teacher") == "none" else [f"{task}_teacher" for task in tasks]
    assert list(out.predictions) == ["score", *of_teacher]
    assert torch.equal(out.predictions["score"], encoded.fused(encoded.scores()))


def test_vectors_are_there_in_evaluation_alone():
    head = made()
    assert head(inputs()).vectors == {}
    assert set(head.eval()(inputs()).vectors) == {"item", "query"}
    assert head.train()(inputs()).vectors == {}


@torch.no_grad()
@pytest.mark.parametrize(("side", "moved"), [("user", True), ("item", True), ("context", False)])
def test_the_context_reaches_the_teacher_alone(side, moved):
    features = features_of()
    other = sides_from(features, features_of(5), side)
    head = made(in_features=under_a_bottom(features).shared.shape[1]).eval()
    before, after = head(under_a_bottom(features)), head(under_a_bottom(other))
    assert all((before.logits[task] != after.logits[task]).any() == moved for task in TWO)
    assert (before.predictions["score"] != after.predictions["score"]).any() == moved
    assert all((before.predictions[f"{task}_teacher"] != after.predictions[f"{task}_teacher"]).any() for task in TWO)


def test_it_wants_features():
    with pytest.raises(AssertionError, match="dmmp reads features"):
        made()(replace(inputs(), features=None))


def test_a_loss_of_several_logits_is_refused():
    with pytest.raises(ValueError, match=r"dmmp wants one logit a task.*\['watch'\] ask for more; use bce"):
        made({"click": 1, "watch": 3})
    made({"click": 1, "watch": 1})


# Its losses


def each(part, tasks=THREE):
    return [f"dmmp/{part}/{task}" for task in tasks]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, [*each("teacher"), *each("distill"), "dmmp/fused"]),
        ({"in_batch_weight": 0.5}, [*each("teacher"), *each("distill"), "dmmp/fused", *each("in_batch")]),
        ({"distill_weight": 0.0}, [*each("teacher"), "dmmp/fused"]),
        ({"fuse_weight": 0.0}, [*each("teacher"), *each("distill")]),
        ({"teacher": "none"}, ["dmmp/fused"]),
        ({"teacher": "none", "fuse_weight": 0.0}, []),
        ({"training": "two_stage"}, [*each("teacher"), *each("distill"), "dmmp/fused"]),
    ],
    ids=str,
)
def test_terms_have_one_order_and_are_there_at_each_step(options, names):
    head, given = made(THREE, **options), inputs()
    assert (list(head.term_names), head.constraint_names) == (names, ())
    labels, weights = labels_and_weights(3)
    for phase, fraction, training in itertools.product(head.phases(1), (0.0, 0.05, 1.0), (True, False)):
        head.train(training).begin_phase(phase)
        head.set_progress(fraction, 7)
        terms = head.terms(head(given), labels, weights)
        assert list(terms) == names
        assert all(term.value.shape == term.weight.shape == (B,) for term in terms.values())


@pytest.mark.parametrize("entire_space", [True, False])
def test_a_row_weighs_what_the_task_says_and_for_all_tasks_together_the_least(entire_space):
    head, (y, w) = made(THREE, entire_space=entire_space, in_batch_weight=1.0), labels_and_weights(3)
    of_teacher = w if entire_space else torch.cat([w[:, :1], w[:, 1:] * y[:, :-1]], 1)
    expected = {"teacher": of_teacher, "distill": w, "in_batch": w * y}
    found = head.terms(head(inputs()), y, w)
    for k, task in enumerate(THREE):
        for part, weight in expected.items():
            assert torch.equal(found[f"dmmp/{part}/{task}"].weight, weight[:, k])
    assert torch.equal(found["dmmp/fused"].weight, w.min(1).values)
    padding = (w == 0).all(1)
    assert padding.any()
    assert not any(term.weight[padding].any() for term in found.values())


def written_out(head, given, labels, weights):
    """Term -> loss, from what the student and the teacher say."""
    o, encoded, conditional = head.options, head.student(given.features), torch.sigmoid(head.teacher(given))
    q, p, y, w = torch.sigmoid(encoded.scores()), conditional.cumprod(0), labels.T, weights.T
    found = {f"dmmp/teacher/{t}": (bce(p[k], y[k]), w[k]) for k, t in enumerate(head.tasks)}
    for k, t in enumerate(head.tasks):
        value = {
            "kl": p[k] * (p[k] / q[k]).log() + (1 - p[k]) * ((1 - p[k]) / (1 - q[k])).log(),
            "soft_label": bce(q[k], p[k]),
            "logit_mse": ((p[k] / (1 - p[k])).log() - encoded.scores()[k]) ** 2,
        }[o.distill]
        found[f"dmmp/distill/{t}"] = (o.distill_weight * value, w[k])
    found["dmmp/fused"] = (
        o.fuse_weight * bce(torch.sigmoid(encoded.fused(encoded.scores())), labels.mean(1)),
        weights.min(1).values,
    )
    return {name: (value * weight).sum() / weight.sum() for name, (value, weight) in found.items()}


@pytest.mark.parametrize("distill", KINDS)
@pytest.mark.parametrize("layout", ["item_per_task", "user_per_task", "two_towers"])
@pytest.mark.parametrize("tasks", [TWO, THREE], ids=len)
def test_losses_equal_the_formulas(tasks, layout, distill):
    head, given = (
        made(tasks, layout=layout, distill=distill, distill_weight=0.3, fuse_weight=0.7),
        inputs(views=len(tasks)),
    )
    labels, weights = labels_and_weights(len(tasks))
    head.set_progress(1.0, 1)
    terms = head.terms(head(given), labels, weights)
    expected = written_out(head, given, labels, weights)
    assert list(terms) == list(expected)
    for name, term in terms.items():
        torch.testing.assert_close((term.value * term.weight).sum() / term.weight.sum(), expected[name], **CLOSE)


def test_the_sum_of_losses_of_a_whole_model():
    tasks, seen = ("click", "cart", "buy"), []
    subject = Subject(DMMP, DMMP.Config(distill_weight=0.3, fuse_weight=0.7), dict.fromkeys(tasks, 1), 12)
    model, batch = subject.model(), subject.batch(B)
    labels, weights = labels_and_weights(3)
    model.objective.head.set_progress(1.0, 1)
    model.objective.head.register_forward_hook(lambda _m, given, out: seen.append((given[0], out)))
    losses, output = model(replace(batch, labels=labels.float(), weights=weights.float()))
    (given, out), head = seen[0], model.objective.head
    q = torch.sigmoid(torch.stack([*out.logits.values()])).double()
    own = [(bce(q[k], labels[:, k]) * weights[:, k]).sum() / weights[:, k].sum() for k in range(3)]
    terms = written_out(head, given, labels, weights)
    assert output.names == (*tasks, *terms)
    expected = torch.stack([*own, *terms.values()]).float()
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses.sum(), expected.sum(), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_items_of_the_batch_are_told_apart_in_training_alone():
    head, given = made(THREE, in_batch_weight=0.5), inputs()
    expected = in_batch_softmax(head.student(given.features), given.features.candidates)
    for training, factor in ((True, 0.5), (False, 0.0)):
        terms = head.train(training).terms(head(given), *labels_and_weights(3))
        torch.testing.assert_close(
            torch.stack([terms[name].value for name in each("in_batch")]), factor * expected, **CLOSE
        )


# What they train


@pytest.mark.parametrize("distill", KINDS)
def test_the_student_learns_from_a_teacher_that_stands_still_unless_told_otherwise(distill):
    for detach in (True, False):
        head = made(THREE, distill=distill, detach=detach)
        head.set_progress(1.0, 1)
        for name, loss in losses_of(head).items():
            if "distill" in name:
                of_teacher, of_student = (gradient_of(loss, module) for module in (head.teacher, head.student))
                assert any(of_teacher.values()) == (not detach)
                assert max(of_student.values()) > 0


def test_no_other_loss_of_the_student_trains_the_teacher_and_none_of_the_teachers_the_student():
    head = made(THREE, in_batch_weight=1.0)
    head.set_progress(1.0, 1)
    losses = losses_of(head) | {task: z.sum() for task, z in head(inputs()).logits.items()}
    for name, loss in losses.items():
        trains = [any(gradient_of(loss, module).values()) for module in (head.teacher, head.student)]
        assert trains == (["teacher" in name, "teacher" not in name])


def pull(head, fraction):
    """How much of what is distilled reaches the student, as a multiple of sigmoid(s) - p."""
    if fraction is not None:
        head.set_progress(fraction, 3)
    out = head(inputs())
    terms = head.terms(out, *labels_and_weights())
    of_all = [term.value.sum() for name, term in terms.items() if "distill" in name]
    (found,) = torch.autograd.grad(sum(of_all), [out.hidden["scores"]])
    expected = torch.sigmoid(out.hidden["scores"]) - torch.sigmoid(out.hidden["products"])
    ratios = found / expected
    torch.testing.assert_close(ratios, ratios.mean().expand_as(ratios), rtol=1e-8, atol=1e-12)
    return float(ratios.mean().detach())


@pytest.mark.parametrize(
    ("warmup", "weights"),
    [
        (0.2, {0.0: 0.0, 0.05: 0.25, 0.1: 0.5, 0.2: 1.0, 0.7: 1.0, 1.0: 1.0}),
        (1.0, {0.0: 0.0, 0.5: 0.5, 1.0: 1.0}),
        (0.0, {None: 1.0, 0.0: 1.0, 0.5: 1.0}),
    ],
)
def test_what_is_distilled_warms_up(warmup, weights):
    head = made(warmup=warmup, distill_weight=0.8)
    for fraction, weight in weights.items():
        assert pull(head, fraction) == pytest.approx(0.8 * weight, abs=1e-9)
    assert pull(head, 0.0) == pytest.approx(0.8 * weights[0.0], abs=1e-9)  # it remembers nothing


def test_a_whole_model_learns_every_task():
    config = DMMP.Config(expert=(16,), tower=(8,), student=(16,), dim=8, gate_tower=(8,))
    before, after = losses_over_training(DMMP, config)
    assert (after < before).all()
