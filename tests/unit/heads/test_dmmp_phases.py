"""DMMP in two stages: the teacher and the tables first, then the student alone."""

import pytest
import torch

from tests.retrieval_runs import HEAD, TASKS
from tests.runs import ADAPTIVE, raw_config, saved, train_one, write
from tests.unit.heads.retrieval_head import (
    SPEC,
    THREE,
    TWO,
    B,
    features_of,
    gradient_of,
    inputs,
    labels_and_weights,
    made,
    under_a_bottom,
)
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.heads.base import Phase
from torchrec_mtl.testing.subject import feature_leaves, gradients_of, view_leaves
from torchrec_mtl.training.distributed import process_group


def of(part, tasks=THREE):
    return tuple(f"dmmp/{part}/{task}" for task in tasks)


def two_stage(tasks=THREE, **options):
    return made(tasks, training="two_stage", **options)


def in_phase(head, number):
    head.begin_phase(head.phases(3)[number])
    head.set_progress(1.0, 9)
    return head


# The plan


@pytest.mark.parametrize("options", [{}, {"teacher": "none"}, {"teacher": "none", "training": "two_stage"}], ids=str)
def test_one_phase_trains_all(options):
    head = made(**options)
    assert head.phases(4) == (Phase("train", 4),)
    head.begin_phase(head.phases(4)[0])
    assert not head.freezes_bottom
    assert list(head.update_masks()) == []


@pytest.mark.parametrize(
    ("options", "student"),
    [
        ({}, (*of("distill"), "dmmp/fused")),
        ({"fuse_weight": 0.0}, of("distill")),
        ({"distill_weight": 0.0}, ("dmmp/fused",)),
        ({"in_batch_weight": 1.0}, (*of("distill"), "dmmp/fused", *of("in_batch"))),
    ],
    ids=str,
)
@pytest.mark.parametrize("teacher_epochs", [1, 2])
def test_the_teacher_trains_first_and_then_the_student(teacher_epochs, options, student):
    head = two_stage(teacher_epochs=teacher_epochs, **options)
    first, second = head.phases(4)
    assert first == Phase("teacher", teacher_epochs, tasks=of("teacher"), trial=True, masked=True)
    assert second == Phase("student", 4, tasks=(*THREE, *student), masked=True)
    assert sorted((*first.tasks, *second.tasks)) == sorted((*THREE, *head.term_names))


# What trains in each


def losses_of(head, given, phase):
    out = head(given)
    own = {task: z.exp().sum() for task, z in out.logits.items()}
    terms = head.terms(out, *labels_and_weights(head.num_tasks))
    own |= {name: (term.value * term.weight).sum() for name, term in terms.items()}
    return {name: loss for name, loss in own.items() if name in phase.tasks}


@pytest.mark.parametrize("options", [{}, {"layout": "two_towers"}, {"detach": False, "in_batch_weight": 1.0}], ids=str)
def test_in_its_phase_no_loss_of_the_student_reaches_tables_bottom_or_teacher(options):
    head, given = in_phase(two_stage(**options), 1), inputs(views=3)
    losses = losses_of(head, given, head.phases(3)[1])
    assert len(losses) >= 7
    leaves = [*feature_leaves(given)[:-1], *view_leaves(given)]  # dense columns are data
    for name, loss in losses.items():
        assert not any(g.any() for g in gradients_of(loss, leaves)), name
        assert not any(gradient_of(loss, head.teacher).values())
        assert any(gradient_of(loss, head.student).values())


def test_otherwise_the_students_losses_reach_the_tables_of_both_sides():
    head = made(THREE)
    head.set_progress(1.0, 9)
    for stage in (head, in_phase(two_stage(), 0)):
        given = inputs()
        out = stage(given)
        reached = [bool(g.any()) for g in gradients_of(out.predictions["score"].sum(), feature_leaves(given)[:-1])]
        assert reached == [f.side != "context" for f in (*SPEC.fields, *SPEC.sequences)]


def test_the_teachers_losses_reach_the_teacher_and_the_bottom():
    features = features_of()
    head = in_phase(two_stage(TWO, in_features=under_a_bottom(features).shared.shape[1]), 0)
    losses = losses_of(head, under_a_bottom(features), head.phases(3)[0])
    assert tuple(losses) == of("teacher", TWO)
    for loss in losses.values():
        assert all(g.any() for g in gradients_of(loss, feature_leaves(under_a_bottom(features))))
        assert any(gradient_of(loss, head.teacher).values())
        assert not any(gradient_of(loss, head.student).values())


def test_each_phase_masks_the_network_that_the_other_trains():
    head = two_stage()
    for number in (0, 1, 1, 0):  # a phase begins anew with each of its epochs
        in_phase(head, number)
        masks = list(head.update_masks())
        assert head.freezes_bottom == bool(number)
        frozen = head.teacher if number else head.student
        assert [id(p) for p, _ in masks] == [id(p) for p in frozen.parameters()]
        for parameter, mask in masks:
            assert (mask.dtype, mask.any().item()) == (torch.bool, False)
            assert mask.expand_as(parameter).shape == parameter.shape


def test_a_frozen_teacher_stops_counting_for_its_norms():
    head = in_phase(two_stage(norm="batch"), 1)
    before = {name: buffer.clone() for name, buffer in head.named_buffers()}
    head.train()(inputs())
    changed = {name for name, buffer in head.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed
    assert all(name.startswith("student.") for name in changed)
    assert in_phase(head, 0).teacher.training


@torch.no_grad()
def test_the_phase_changes_no_score():
    head, given = two_stage(), inputs()
    for training in (True, False):
        head.train(training)
        one, other = (in_phase(head, number)(given) for number in (0, 1))
        for name, value in {**one.logits, **one.predictions, **one.hidden, **one.vectors}.items():
            assert torch.equal({**other.logits, **other.predictions, **other.hidden, **other.vectors}[name], value)
    assert one.hidden["scores"].shape == (3, B)


# In a run

PARTS = ("model.embeddings", "model.objective.bottoms", "model.objective.head.teacher", "model.objective.head.student")


def moved(before, after):
    """Of tables, bottom, teacher, and student: whether all of its tensors changed, or none; else an empty text."""
    changed = [{not torch.equal(before[key], after[key]) for key in before if key.startswith(part)} for part in PARTS]
    return [each.pop() if len(each) == 1 else "" for each in changed]


@pytest.mark.parametrize(
    ("bottom", "gradient"),
    [({"type": "epnet", "domain": ["tags"], "hidden": 8}, "sum"), ({"type": "dcn", "rank": 4}, "gradnorm")],
    ids=["epnet-sum", "dcn-gradnorm"],
)
def test_a_run_leaves_all_but_the_student_as_the_teachers_phase_left_it(tmp_path, bottom, gradient):
    """With AdamW: its moments and its decay move weights that get no gradient."""
    raw = raw_config(
        write(tmp_path / "train.parquet", make_table(256, seed=1)),
        tmp_path / "run",
        space=False,
        tasks=TASKS,
        head={**HEAD, "training": "two_stage", "gate_tower": [16]},
        bottom=bottom,
        gradient={"type": gradient},
        optim={**ADAPTIVE, "dense": {"type": "adamw", "lr": 0.01, "weight_decay": 0.1}},
        train={"checkpoint_every": 2, "keep": 100},
    )
    with process_group("cpu"):
        train_one(raw)
    begun, taught, ended = (saved(tmp_path / "run", f"step-{step:09d}") for step in (2, 4, 8))
    assert moved(begun, taught) == [True, True, True, False]
    assert moved(taught, ended) == [False, False, False, True]
    steps = [float(ended[key]) for key in ended if ".head.student." in key and key.endswith(".step")]
    assert steps
    assert set(steps) == {4.0}  # of its own phase, which the correction of Adam's bias goes by
    remembered = [key for key in taught if key.startswith("optim.") and "embeddings" in key]
    assert remembered
    assert all(torch.equal(taught[key], ended[key]) for key in remembered)
