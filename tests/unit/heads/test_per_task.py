"""Under a bottom that makes one representation a task: whose logits each representation reaches, in either form."""

from dataclasses import replace

import pytest
import torch

from torchrec_mtl.heads.adatt import AdaTT
from torchrec_mtl.heads.dbmtl import DBMTL
from torchrec_mtl.heads.home import HoME
from torchrec_mtl.heads.htlnet import HTLNet
from torchrec_mtl.heads.ncs4cvr import NCS4CVR
from torchrec_mtl.heads.ple import PLE
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.registry import BUILT_IN, resolve
from torchrec_mtl.testing.subject import Subject, gradients_of, view_leaves, weighted

OUTPUTS = {"click": 1, "long_view": 1, "watch_time": 3}
TASKS = tuple(OUTPUTS)

# By task: whose representations its logits depend on. The first two tasks are binary, the last is a regression.
OWN = [{0}, {1}, {2}]
CHAIN = [{0}, {0, 1}, {2}]  # products of probabilities along the binary tasks; the regression stands outside
EARLIER = [{0}, {0, 1}, {0, 1, 2}]  # what a task passes on goes to later ones
ALL = [{0, 1, 2}] * 3

# Head -> the above, and whether `shared` is read too.
READ = {
    "single_task": (OWN, False),
    "shared_bottom": (OWN, False),
    "mmoe": (OWN, False),
    "pepnet": (OWN, False),
    "ple": (OWN, False),  # one level: a task mixes shared experts and its own, fed with its own
    "ncs4cvr": (OWN, False),
    "esmm": (CHAIN, False),
    "escm2": (CHAIN, False),
    "aitm": (EARLIER, False),
    "dbmtl": (EARLIER, False),
    "htlnet": (EARLIER, False),  # what it passes on carries no gradient, but values
    "adatt": (ALL, False),  # a task mixes the experts of all tasks
    "stem": (ALL, True),
    "home": (ALL, True),  # the shared mixture is of all groups
}
VARIANTS = [
    (PLE.Config(levels=((8,), (6,))), ALL, True),  # level 2's shared experts read a mixture of all experts
    (AdaTT.Config(shared_experts=1), ALL, True),
    (NCS4CVR.Config(chain=True), CHAIN, False),
    (NCS4CVR.Config(masks="dense"), OWN, False),
    (SharedBottom.Config(shared=()), OWN, False),
    (HTLNet.Config(leu=False, ifu_rep=False), OWN, False),
    (DBMTL.Config(shared=(), task=()), EARLIER, False),
    (HoME.Config(norm="none", groups=(("click",), ("long_view",), ("watch_time",))), ALL, True),
]
# dmmp's logits are its student's, which reads features alone; its teacher has tests of its own.
HEADS = [name for name in BUILT_IN["head"] if name != "dmmp"]
CASES = [(resolve("head", name).Config(), *READ[name]) for name in HEADS] + VARIANTS
ALONE = [case for case in CASES if case[1:] == (OWN, False)]


def named(value):
    return f"{value.type}-{value.model_dump(exclude_defaults=True, exclude={'type'})}" if hasattr(value, "type") else ""


def made(config):
    subject = Subject(resolve("head", config.type), config, OUTPUTS, in_features=6)
    return subject.build(), subject.inputs(16)


def with_views(inputs, change):
    return replace(inputs, per_task=tuple(change(k, view) for k, view in enumerate(inputs.per_task)))


@torch.no_grad()
def changed(head, inputs, other):
    """Which tasks' logits differ in a single bit."""
    before, after = head(inputs).logits, head(other).logits
    return {b for b, task in enumerate(TASKS) if not torch.equal(before[task], after[task])}


@pytest.mark.parametrize(("config", "read", "reads_shared"), CASES, ids=named)
def test_a_representation_reaches_the_logits_of_the_tasks_that_read_it(config, read, reads_shared):
    head, inputs = made(config)
    head.eval()
    for a in range(len(TASKS)):
        other = with_views(inputs, lambda k, view, a=a: view + 1 if k == a else view)
        assert changed(head, inputs, other) == {b for b, of_b in enumerate(read) if a in of_b}
    moved = changed(head, inputs, replace(inputs, shared=inputs.shared + 1))
    assert moved == (set(range(len(TASKS))) if reads_shared else set())


@pytest.mark.parametrize(("config", "read", "reads_shared"), ALONE, ids=named)
def test_a_task_alone_reads_its_representation_as_if_all_tasks_did(config, read, reads_shared):
    head, inputs = made(config)
    found = head(inputs).logits
    for task, view in zip(TASKS, inputs.per_task, strict=True):
        alone = head(replace(inputs, shared=view, per_task=None)).logits[task]
        torch.testing.assert_close(found[task], alone)
        leaves = [view, *head.parameters()]
        for one, other in zip(*(gradients_of(weighted(z), leaves) for z in (found[task], alone)), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("config", "read", "reads_shared"), CASES, ids=named)
def test_one_tensor_of_all_representations_gives_the_same(config, read, reads_shared, training):
    (head, inputs), (same, _) = made(config), made(config)
    views = torch.stack(inputs.per_task).detach().requires_grad_()
    found = head.train(training)(inputs)
    stacked = same.train(training)(replace(inputs, per_task=views))
    for name, value in {**found.logits, **found.predictions, **found.hidden}.items():
        assert torch.equal({**stacked.logits, **stacked.predictions, **stacked.hidden}[name], value)
    loss, other = (torch.stack([weighted(z) for z in out.logits.values()]).sum() for out in (found, stacked))
    _, *of_views = gradients_of(loss, view_leaves(inputs))
    torch.testing.assert_close(gradients_of(other, [views])[0], torch.stack(of_views))
    pairs = zip(
        gradients_of(loss, [inputs.shared, *head.parameters()]),
        gradients_of(other, [inputs.shared, *same.parameters()]),
        strict=True,
    )
    for one, two in pairs:
        torch.testing.assert_close(one, two)


def test_every_built_in_head_is_looked_at():
    assert READ.keys() == set(HEADS)
