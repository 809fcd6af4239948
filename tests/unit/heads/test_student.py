"""The retrieval student: its towers, its gate, and a score that is one inner product."""

import copy
import io
from dataclasses import replace

import pytest
import torch

from tests.unit.bottoms.sequences import rows_of
from tests.unit.heads.retrieval_head import (
    SPEC,
    THREE,
    TWO,
    B,
    columns,
    features_of,
    inputs,
    made,
    sides_from,
    vector,
)
from torchrec_mtl.features import FeaturesSpec
from torchrec_mtl.testing.subject import gradients_of, weighted

LAYOUTS, GATES = ("item_per_task", "user_per_task", "two_towers"), ("user", "global", "even")
TASKS = {1: ("click",), 2: TWO, 3: THREE}
SCALES = [{}, {"normalize": True, "temperature": 0.2}]
CLOSE = {"rtol": 0, "atol": 1e-12}


def written_out(head, features):
    """Scores [K, B], the gate [B, K], and the fused score [B]."""
    student, options, k = head.student, head.options, head.num_tasks
    user, item = columns(features, "user"), columns(features, "item")
    gates = {
        "user": lambda: vector(student.gate, 0, user),
        "global": lambda: student.preference.expand(B, k),
        "even": lambda: torch.zeros(B, k, dtype=torch.float64),
    }
    gate = torch.softmax(gates[options.gate](), 1)
    scores = []
    for t in range(k):
        u = vector(student.user, t if options.layout == "user_per_task" else 0, user)
        v = vector(student.item, t if options.layout == "item_per_task" else 0, item)
        if options.normalize:
            u, v = u / u.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
        s = (u * v).sum(1) / options.temperature
        if options.layout == "two_towers":
            scores.append(s * student.log_scale[t, 0].exp() + student.bias[t])
        else:
            scores.append(s + student.bias[t] + vector(student.item_bias, 0, item)[:, t])
    return torch.stack(scores), gate, sum(gate[:, t] * s for t, s in enumerate(scores))


@pytest.mark.parametrize("count", TASKS)
@pytest.mark.parametrize("scale", SCALES, ids=["plain", "normalize"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_equal_the_equations(layout, gate, scale, count):
    head, features = made(TASKS[count], layout=layout, gate=gate, **scale), features_of()
    encoded = head.student(features)
    found, expected = (encoded.scores(), encoded.gate, encoded.fused(encoded.scores())), written_out(head, features)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    leaves = [*features.fields.values(), *(s.values for s in features.sequences.values()), features.dense]
    leaves += head.student.parameters()
    mine, theirs = (gradients_of(weighted(scores) + weighted(fused), leaves) for scores, _, fused in (found, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def pairs(student, features):
    """Scores of every user (row) with every item (column), [K, B, B], by running the student on all pairings."""
    found = torch.zeros(student.num_tasks, B, B, dtype=torch.float64)
    for shift in range(B):
        other = [(b + shift) % B for b in range(B)]
        found[:, range(B), other] = student(sides_from(features, rows_of(features, other), "item")).scores()
    return found


@torch.no_grad()
@pytest.mark.parametrize("count", TASKS)
@pytest.mark.parametrize("scale", SCALES, ids=["plain", "normalize"])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_inner_product_is_the_score_of_every_user_with_every_item(layout, gate, scale, count):
    head, features = made(TASKS[count], layout=layout, gate=gate, **scale).eval(), features_of()
    vectors, g, s = head(inputs(features=features)).vectors, head.student(features).gate, pairs(head.student, features)
    query, item = vectors["query"], vectors["item"]
    width = 5 * (count if layout == "item_per_task" else 1) + count
    assert (query.shape, item.shape) == ((B, count, width), (B, width))
    for k in range(count):
        torch.testing.assert_close(query[:, k] @ item.T, g[:, [k]] * s[k], **CLOSE)
    fused = torch.einsum("bk,kbi->bi", g, s)
    composed = query.sum(1) @ item.T
    torch.testing.assert_close(composed, fused, **CLOSE)
    assert torch.equal(composed.topk(3).indices, fused.topk(3).indices)
    again = torch.linspace(0.5, 2.0, count, dtype=torch.float64)
    torch.testing.assert_close(
        torch.einsum("k,bkd->bd", again, query) @ item.T, torch.einsum("k,bk,kbi->bi", again, g, s), **CLOSE
    )


def parts(encoded):
    return {"users": encoded.users, "gate": encoded.gate, "items": encoded.items, "biases": encoded.biases}


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_side_is_read_alone_and_the_context_not_at_all(layout, training):
    student, features, other = made(layout=layout).student.train(training), features_of(), features_of(7)
    before = parts(student(features))
    of_items = {"items"} if layout == "two_towers" else {"items", "biases"}
    read = [(("user",), {"users", "gate"}), (("item",), of_items), (("context",), set())]
    for sides, expected in [*read, (("item", "context"), of_items), (("user", "context"), {"users", "gate"})]:
        after = parts(student(sides_from(features, other, *sides)))
        assert {name for name, value in after.items() if not torch.equal(value, before[name])} == expected


@torch.no_grad()
def test_the_items_of_a_batch_do_not_move_its_gate_and_vectors_even_in_another_order():
    student, features = made().student.eval(), features_of()
    order = [3, 0, 7, 1, 6, 2, 5, 4]
    before = student(features)
    after = student(sides_from(features, rows_of(features, order), "item", "context"))
    assert torch.equal(after.gate, before.gate)
    assert torch.equal(after.users, before.users)
    torch.testing.assert_close(after.items, before.items[:, order], **CLOSE)
    assert not torch.equal(after.items, before.items)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_score_has_a_gradient_to_features_of_the_context(layout):
    head, features = made(THREE, layout=layout), features_of()
    out = head(inputs(features=features))
    loss = weighted(torch.stack([*out.logits.values(), out.predictions["score"]]))
    page, dense = torch.autograd.grad(
        loss, [features.fields["page"], features.dense], materialize_grads=True, allow_unused=True
    )
    assert not page.any()
    assert dense.abs().sum(0).bool().tolist() == [d.side != "context" for d in SPEC.dense]


@torch.no_grad()
def test_a_gate_of_one_task_gives_that_tasks_ranking():
    head, features = made(), features_of()
    head.student.gate.last.weight.zero_()
    head.student.gate.last.bias.copy_(torch.tensor([[[0.0, -1000.0]]]))
    encoded, s = head.student(features), pairs(head.student, features)
    assert encoded.gate.tolist() == [[1.0, 0.0]] * B
    assert torch.equal(encoded.fused(encoded.scores()), encoded.scores()[0])
    composed = encoded.query_vectors().sum(1) @ encoded.item_vectors().T
    assert torch.equal(composed.argsort(1), s[0].argsort(1))
    assert not torch.equal(composed.argsort(1), s[1].argsort(1))


@torch.no_grad()
@pytest.mark.parametrize("count", TASKS)
def test_the_weights_of_the_gate_sum_to_one_and_only_a_users_gate_tells_users_apart(count):
    gates = {gate: made(TASKS[count], gate=gate).student(features_of()).gate for gate in GATES}
    for gate in gates.values():
        torch.testing.assert_close(gate.sum(1), torch.ones(B, dtype=torch.float64), **CLOSE)
    assert torch.equal(gates["even"], torch.full((B, count), 1 / count, dtype=torch.float64))
    differ = {name: bool((gate != gate[0]).any()) for name, gate in gates.items()}
    assert differ == {"user": count > 1, "global": False, "even": False}
    if count > 1:
        assert (gates["global"][0] - 1 / count).abs().max() > 0.01


@pytest.mark.parametrize(("gate", "count"), [("user", 4), ("global", 1)])
def test_only_the_fused_score_trains_the_gate(gate, count):
    head = made(gate=gate)
    out = head(inputs())
    own = [p for name, p in head.student.named_parameters() if name.startswith(("gate.", "preference"))]
    assert len(own) == count
    assert all(g.any() for g in gradients_of(weighted(out.predictions["score"]), own))
    assert not any(g.any() for g in gradients_of(weighted(torch.stack([*out.logits.values()])), own))


@torch.no_grad()
def test_two_towers_rank_items_alike_for_all_tasks():
    for layout, alike in (("two_towers", True), ("item_per_task", False), ("user_per_task", False)):
        s = pairs(made(THREE, layout=layout).student, features_of())
        assert torch.equal(s[0].argsort(1), s[1].argsort(1)) == torch.equal(s[0].argsort(1), s[2].argsort(1)) == alike


@torch.no_grad()
def test_vectors_of_length_one_are_divided_by_the_temperature_on_the_users_side():
    encoded = made(normalize=True, temperature=0.1).student(features_of())
    torch.testing.assert_close(encoded.users.norm(dim=-1), torch.full((1, B), 10.0, dtype=torch.float64))
    torch.testing.assert_close(encoded.items.norm(dim=-1), torch.ones(2, B, dtype=torch.float64))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", [(), ("user",), ("item",), ("context",), ("user", "context")], ids=str)
def test_a_side_without_features_is_refused_with_the_remedy(kept, layout):
    sides = [tuple(f for f in specs if f.side in kept) for specs in (SPEC.fields, SPEC.sequences, SPEC.dense)]
    lacking, found = {
        (): ("user", "none"),
        ("user",): ("item", r"user \(user\), seen \(user\), age \(user\)"),
        ("item",): ("user", r"item \(item\), words \(item\), price \(item\)"),
        ("context",): ("user", r"page \(context\), hour \(context\)"),
        ("user", "context"): (
            "item",
            r"user \(user\), page \(context\), seen \(user\), age \(user\), hour \(context\)",
        ),
    }[kept]
    message = (
        f"the {lacking} tower has nothing to read: no feature has side: {lacking} .found {found}.; give features their"
    )
    with pytest.raises(ValueError, match=message):
        made(spec=FeaturesSpec(*sides), layout=layout)


@torch.no_grad()
def test_a_single_feature_a_side_is_enough():
    spec = replace(SPEC, fields=(), sequences=(), dense=SPEC.dense[:2])
    student, features = made(spec=spec).student, replace(features_of(), fields={}, sequences={}, spec=spec)
    features = replace(features, dense=features.dense[:, :2])
    encoded = student(features)
    torch.testing.assert_close(encoded.users[0], vector(student.user, 0, features.dense[:, [1]]), **CLOSE)
    torch.testing.assert_close(encoded.items[1], vector(student.item, 1, features.dense[:, [0]]), **CLOSE)


# The student alone


def storages(module):
    return {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_student_stands_alone(layout):
    head, features = made(THREE, layout=layout, norm="batch"), features_of()
    head(inputs(features=features))  # moves the running statistics
    head.eval()
    assert not any("teacher" in name for name in head.student.state_dict())
    assert not storages(head.student) & storages(head.teacher)
    out, stored = head(inputs(features=features)), io.BytesIO()
    torch.save(head.student.state_dict(), stored)
    stored.seek(0)
    loaded = made(THREE, layout=layout, norm="batch", seed=2).student.eval()
    loaded.load_state_dict(torch.load(stored, weights_only=True))
    copied = copy.deepcopy(head.student)
    for module in (head, head.teacher):
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(torch.nan)  # whatever becomes of the rest
    for student in (copied, loaded):
        encoded = student(features)
        assert torch.equal(encoded.scores(), torch.stack([*out.logits.values()]))
        assert torch.equal(encoded.fused(encoded.scores()), out.predictions["score"])
        assert torch.equal(encoded.item_vectors(), out.vectors["item"])
        assert torch.equal(encoded.query_vectors(), out.vectors["query"])
