"""Every built-in head keeps the promises of a head, and the check refuses heads that break one."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from torchrec_mtl.bottoms.base import Representation
from torchrec_mtl.findings import TableFinding
from torchrec_mtl.heads.base import Head, HeadConfig, HeadOutput, Phase, PhaseEnd, Term
from torchrec_mtl.heads.dmmp import DMMP
from torchrec_mtl.heads.htlnet import HTLNet
from torchrec_mtl.heads.ncs4cvr import NCS4CVR
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.heads.single_task import SingleTask
from torchrec_mtl.registry import BUILT_IN, resolve
from torchrec_mtl.testing import check_head

OUTPUTS = {
    "one task": {"watch": 1},
    "two tasks": {"click": 1, "watch": 1},
    "a distribution": {"click": 1, "long_view": 1, "watch": 3},
}
ONE_LOGIT = {"dmmp"}  # heads that take no task with several
VARIANTS = [
    SharedBottom.Config(shared=(), tower=(4,)),
    SharedBottom.Config(shared=(8,), tower=(), norm="batch"),
    SharedBottom.Config(shared=(8,), tower=(4,), norm="layer"),
    SingleTask.Config(tower=(8, 4), norm="batch"),
    HTLNet.Config(tower=(8,), norm="batch", leu_mode="raw"),
    HTLNet.Config(tower=(8, 4), ifu_mode="concat", stop_gradient_at="fused"),
    HTLNet.Config(tower=(8, 4), stop_gradient_at="leu_output", leu_mode="tempered"),
    HTLNet.Config(tower=(8, 4), stop_gradient_at="none"),
    HTLNet.Config(tower=(8, 4), leu=False, norm="layer"),
    HTLNet.Config(tower=(8, 4), ifu_rep=False),
    HTLNet.Config(tower=(8, 4), leu=False, ifu_rep=False),
    NCS4CVR.Config(shared=(8, 4), masks="one", warmup_steps=5),
    NCS4CVR.Config(shared=(8, 4), masks="random", choose="last"),
    NCS4CVR.Config(shared=(8,), masks="dense"),
    NCS4CVR.Config(shared=(8, 4), chain=True),
    NCS4CVR.Config(shared=(8, 4), grow=0.2, threshold="layer"),
    NCS4CVR.Config(shared=(8, 4), batches="alternate", mask_updates=False),
    DMMP.Config(expert=(8,), student=(8,), training="two_stage", teacher_epochs=2),
    DMMP.Config(teacher="none", student=(8,), gate="even"),
    DMMP.Config(expert=(8,), student=(8, 4), layout="two_towers"),
    DMMP.Config(expert=(8,), student=(8,), layout="user_per_task", gate="global", normalize=True, temperature=0.1),
    DMMP.Config(teacher="mmoe", expert=(8, 4), tower=(4,), student=(8,), norm="batch"),
    DMMP.Config(teacher="shared_bottom", expert=(8,), student=(), detach=False, entire_space=False),
]


@pytest.mark.parametrize("name", BUILT_IN["head"])
def test_built_in_head_keeps_its_promises(name):
    check_head(resolve("head", name))


@pytest.mark.parametrize("outputs", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("name", BUILT_IN["head"])
def test_built_in_head_takes_other_tasks(name, outputs):
    if name in ONE_LOGIT and max(outputs.values()) > 1:
        with pytest.raises(ValueError, match=f"{name} wants one logit a task"):
            check_head(resolve("head", name), outputs=outputs, in_features=5)
        return
    check_head(resolve("head", name), outputs=outputs, in_features=5)


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: f"{c.type}-{c.model_dump(exclude_defaults=True)}")
def test_options_break_no_promise(config):
    check_head(resolve("head", config.type), config)


class Linear(Head):
    """One linear map a task: keeps all promises; the broken heads below change one thing each."""

    class Config(HeadConfig):
        type: str = "linear"

    def __init__(self, in_features, outputs, config):
        super().__init__(in_features, outputs, config)
        self.maps = nn.ModuleList(nn.Linear(in_features, width) for width in self.outputs.values())

    @property
    def isolates_tasks(self):
        return True

    def transformed(self, x: Tensor, k: int, representation: Representation) -> Tensor:
        return x

    def forward(self, representation):
        logits = {}
        for k, name in enumerate(self.outputs):
            z = self.maps[k](self.transformed(representation.of_task(k), k, representation))
            logits[name] = z.squeeze(1) if z.shape[1] == 1 else z
        return HeadOutput(logits=logits)


def test_the_head_that_is_broken_below_is_whole():
    check_head(Linear)
    check_head(Linear, outputs=OUTPUTS["a distribution"])


class ForgetsATask(Linear):
    def forward(self, representation):
        return HeadOutput(logits=dict(list(super().forward(representation).logits.items())[1:]))


class ReturnsColumns(Linear):
    def forward(self, representation):
        return HeadOutput(logits={k: z.unsqueeze(1) for k, z in super().forward(representation).logits.items()})


class DividesByZero(Linear):
    def transformed(self, x, k, representation):
        return x / x.norm(dim=1, keepdim=True)


class HasInfiniteGradients(Linear):
    def transformed(self, x, k, representation):
        return x.abs().sqrt()


class Overflows(Linear):
    def transformed(self, x, k, representation):
        return x.exp()


class DrawsItsParametersElsewhere(Linear):
    made = 0

    def __init__(self, in_features, outputs, config):
        super().__init__(in_features, outputs, config)
        DrawsItsParametersElsewhere.made += 1
        nn.init.constant_(self.maps[0].bias, self.made)


class SaysItIsolates(Linear):
    def transformed(self, x, k, representation):
        return x if k == 0 else x + 1e-6 * representation.of_task(k - 1)


class IsolatesViewsButReadsShared(Linear):
    def transformed(self, x, k, representation):
        return x + representation.shared


class ReadsFeaturesInSecret(Linear):
    def transformed(self, x, k, representation):
        return x + representation.features.fields["user_id"].mean(1, keepdim=True)


class ReadsFeaturesOnlyAndSaysSo(Linear):
    reads_features = True

    def transformed(self, x, k, representation):
        return representation.features.fields["user_id"].mean(1, keepdim=True).expand_as(x)


class IgnoresItsInput(Linear):
    def transformed(self, x, k, representation):
        return torch.ones_like(x)


class CentresTheBatch(Linear):
    def transformed(self, x, k, representation):
        return x if self.training else x - x.mean(0)


class CountsRows(Linear):
    def transformed(self, x, k, representation):
        return x if self.training else x + torch.arange(len(x)).unsqueeze(1)


class NormalisesPadding(Linear):
    def __init__(self, in_features, outputs, config):
        super().__init__(in_features, outputs, config)
        self.norm = nn.BatchNorm1d(in_features)

    def transformed(self, x, k, representation):
        return self.norm(x) if len(x) > 1 else x


class CountsPaddingInABuffer(Linear):
    def __init__(self, in_features, outputs, config):
        super().__init__(in_features, outputs, config)
        self.register_buffer("mean", torch.zeros(in_features))

    def transformed(self, x, k, representation):
        if self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean if not self.training else x


class DropsOut(Linear):
    def transformed(self, x, k, representation):
        return nn.functional.dropout(x, 0.5, self.training)


class DropsOutByNoise(Linear):
    def transformed(self, x, k, representation):
        if not self.training:
            return x
        keep = representation.features.noise.uniform(f"dropout/{k}", x.shape[1]) > 0.5
        return x * keep * 2


class DrawsABuffer(Linear):
    def __init__(self, in_features, outputs, config):
        super().__init__(in_features, outputs, config)
        self.register_buffer("random", torch.zeros(3))

    def transformed(self, x, k, representation):
        if self.training:
            self.random.uniform_()
        return x


class SamplesInEvaluation(Linear):
    def transformed(self, x, k, representation):
        return x if self.training else x + torch.rand_like(x)


class DropsOutInEvaluation(DropsOutByNoise):
    def transformed(self, x, k, representation):
        return x * representation.features.noise.uniform("always", 1)


class NeedsFeaturesToBeThere(Linear):
    def transformed(self, x, k, representation):
        return x * representation.features.valid.unsqueeze(1)


class WantsATensorATask(Linear):
    def transformed(self, x, k, representation):
        return x if representation.per_task is None else torch.stack(representation.per_task)[k]


class LearnsInEvaluation(Linear):
    def __init__(self, in_features, outputs, config):
        super().__init__(in_features, outputs, config)
        self.register_buffer("seen", torch.zeros(()))

    def transformed(self, x, k, representation):
        self.seen += (not self.training) * 1.0
        return x


class HidesItsState(Linear):
    def __init__(self, in_features, outputs, config):
        super().__init__(in_features, outputs, config)
        self.hidden = torch.randn(in_features)

    def transformed(self, x, k, representation):
        return x * self.hidden


class HidesItsProgress(Linear):
    scale = 1.0

    def set_progress(self, fraction, step):
        self.scale = 1.0 + fraction

    def transformed(self, x, k, representation):
        return x * self.scale


class AddsUpProgress(Linear):
    def __init__(self, in_features, outputs, config):
        super().__init__(in_features, outputs, config)
        self.register_buffer("scale", torch.ones(()))

    def set_progress(self, fraction, step):
        self.scale.mul_(0.9)

    def transformed(self, x, k, representation):
        return x * self.scale


class HasTerms(Linear):
    term_names = ("order",)
    padding_weight = 0.0

    @property
    def isolates_tasks(self):
        return False

    def terms(self, output, labels, weights) -> Mapping[str, Term]:
        first, *_, last = output.logits.values()
        return {"order": Term((last - first).relu(), weights[:, 0].clamp_min(self.padding_weight))}


class NamesNoTerms(HasTerms):
    term_names = ()


class WeighsPadding(HasTerms):
    padding_weight = 0.1


class CallsATermLikeATask(HasTerms):
    term_names = ("click",)

    def terms(self, output, labels, weights):
        return {"click": super().terms(output, labels, weights)["order"]}


class HasAnEmptyPhase(Linear):
    def phases(self, epochs):
        return (Phase("warm", 0), Phase("train", epochs))


class TrainsATaskThatIsNotThere(Linear):
    def phases(self, epochs):
        return (Phase("train", epochs, ("purchase",)),)


class RewindsAtOnce(Linear):
    def phases(self, epochs):
        return (Phase("train", epochs, rewind="all"),)


class KeepsWhatIsNotThere(Linear):
    state_kept = ("rounds",)


class InTurns(Linear):
    """Trains the first task, then one at a time, and counts the phases."""

    state_kept = ("ended",)

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("ended", torch.zeros(()))

    def phases(self, epochs):
        first = next(iter(self.outputs))
        return (Phase("first", epochs, (first,), trial=True), Phase("turns", epochs, alternate=True, rewind="dense"))

    def end_phase(self, phase, metrics):
        self.ended += 1
        return PhaseEnd(f"{phase.name} is over", {"ended": float(self.ended)})

    def update_masks(self):
        return [(p, torch.ones_like(p, dtype=torch.bool)) for p in self.parameters()]

    def findings(self):
        return [TableFinding("phases", ("ended",), ((float(self.ended),),))]


class KeepsMoreThanItSays(InTurns):
    state_kept = ()


class PutsAnotherTensorInPlace(InTurns):
    def end_phase(self, phase, metrics):
        self.ended = self.ended + 1


class TellsNoNumbers(InTurns):
    def end_phase(self, phase, metrics):
        return PhaseEnd("over", {"ended": "yes"})


class MasksAnotherShape(InTurns):
    def update_masks(self):
        return [(p, torch.ones(7, dtype=torch.bool)) for p in self.parameters()]


class MasksByNumbers(InTurns):
    def update_masks(self):
        return [(p, torch.ones_like(p)) for p in self.parameters()]


class ForgetsTheActive(InTurns):
    active = None

    def activate(self, tasks):
        self.active = tasks

    def transformed(self, x, k, representation):
        return x if self.active is None else 2 * x


class TrainsNothing(Linear):
    def phases(self, epochs):
        return (Phase("train", epochs, ()),)


class EndsWithATrial(Linear):
    def phases(self, epochs):
        return (Phase("train", epochs, trial=True),)


class HasTermsInTurns(HasTerms):
    def phases(self, epochs):
        return (Phase("train", epochs, alternate=True),)


class KeepsWhatNoCheckpointHolds(InTurns):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.register_buffer("ended", torch.zeros(()), persistent=False)


class RemembersInPython(InTurns):
    seen = 0

    def end_phase(self, phase, metrics):
        self.seen += 1

    def transformed(self, x, k, representation):
        return x + self.seen


class FindsInfinity(InTurns):
    def findings(self):
        return [TableFinding("phases", ("ended",), ((float("inf"),),))]


class FindsSomethingElse(InTurns):
    def findings(self):
        return ["all is well"]


class FindsUnevenRows(InTurns):
    def findings(self):
        return [TableFinding("phases", ("ended", "left"), ((1.0,),))]


class SharesItsOwnTables(Linear):
    tables = "own"

    @property
    def isolates_tasks(self):
        return False

    def transformed(self, x, k, representation):
        return x if k == 0 else x + representation.of_task(k - 1)


class PredictsNaN(Linear):
    def forward(self, representation):
        logits = super().forward(representation).logits
        return HeadOutput(logits=logits, predictions={"ratio": torch.log(-logits["click"].abs() - 1)})


class PredictsColumns(Linear):
    def forward(self, representation):
        logits = super().forward(representation).logits
        return HeadOutput(logits=logits, predictions={"both": torch.stack(list(logits.values()), 1)})


class PenalisesRows(Linear):
    def forward(self, representation):
        logits = super().forward(representation).logits
        return HeadOutput(logits=logits, penalties={"size": logits["click"].square()})


class RefusesAllTasks(Linear):
    class Config(HeadConfig):
        type: str = "refuses"

        def problems(self, tasks):
            return ["no task is good enough; have none"]


REFUSED = [
    (ForgetsATask, "returns logits for"),
    (ReturnsColumns, "logits of shape"),
    (DividesByZero, "not finite for zero inputs"),
    (HasInfiniteGradients, "gradients that are not finite for zero inputs"),
    (Overflows, "not finite for large inputs"),
    (DrawsItsParametersElsewhere, "other parameters from the same torch seed"),
    (SaysItIsolates, "the loss of 'long_view' reaches the view of click"),
    (IsolatesViewsButReadsShared, "says isolates_tasks"),
    (ReadsFeaturesInSecret, "reads features for 'click' past the representation"),
    (IgnoresItsInput, "depend on no input"),
    (CentresTheBatch, "depend on the other rows"),
    (CountsRows, "its place among them"),
    (NormalisesPadding, "lets padding rows"),
    (CountsPaddingInABuffer, "its buffers"),
    (DropsOut, "draws from torch's generator"),
    (DrawsABuffer, "buffers"),
    (SamplesInEvaluation, "when evaluated twice"),
    (DropsOutInEvaluation, "uses `features.noise` in evaluation"),
    (NeedsFeaturesToBeThere, "fails where `representation.features` is None"),
    (WantsATensorATask, "fails where `representation.per_task` is one tensor"),
    (LearnsInEvaluation, "changes its buffers in evaluation"),
    (HidesItsState, "state dict"),
    (HidesItsProgress, "state dict"),
    (AddsUpProgress, "depends on earlier calls"),
    (NamesNoTerms, "term_names"),
    (WeighsPadding, "weighs padding rows"),
    (CallsATermLikeATask, "calls a term like a task"),
    (HasAnEmptyPhase, "0 epochs"),
    (TrainsATaskThatIsNotThere, "purchase"),
    (TrainsNothing, "trains nothing in phase 'train'"),
    (EndsWithATrial, "ends with a trial"),
    (HasTermsInTurns, "would never train"),
    (KeepsWhatNoCheckpointHolds, "no such buffers in its state dict"),
    (RemembersInPython, "goes on otherwise once its state dict is loaded"),
    (FindsInfinity, "no finite number"),
    (RewindsAtOnce, "rewinds in its first phase"),
    (KeepsWhatIsNotThere, "has no such buffers"),
    (KeepsMoreThanItSays, "changes ended at the end of a phase"),
    (PutsAnotherTensorInPlace, "another tensor in place of ended"),
    (TellsNoNumbers, "more than a text and numbers"),
    (MasksAnotherShape, "masks an update of shape"),
    (MasksByNumbers, "torch.float32"),
    (ForgetsTheActive, "other logits for click once those alone are active"),
    (FindsSomethingElse, "no TableFinding or MatrixFinding"),
    (FindsUnevenRows, "rows are not as wide"),
    (SharesItsOwnTables, "lets the loss of 'long_view' train tables of other tasks"),
    (PredictsNaN, "a 'ratio' that is not finite"),
    (PredictsColumns, "prediction 'both' of shape"),
    (PenalisesRows, "penalty 'size' of shape"),
    (RefusesAllTasks, "have none"),
]


@pytest.mark.parametrize(("head_class", "promise"), REFUSED, ids=[c.__name__ for c, _ in REFUSED])
def test_broken_head_is_refused_for_the_promise_it_breaks(head_class, promise):
    with pytest.raises(AssertionError, match=promise):
        check_head(head_class)


@pytest.mark.parametrize("head_class", [DropsOutByNoise, HasTerms, InTurns, ReadsFeaturesOnlyAndSaysSo])
def test_unusual_head_that_keeps_its_promises_passes(head_class):
    check_head(head_class)


def test_head_that_no_config_can_name_is_refused():
    class Local(Linear):
        pass

    with pytest.raises(AssertionError, match="cannot be named in a config"):
        check_head(Local)


class LeaksOnlyInAModel(Linear):
    """Reads features only where they come from tables, so that its reach looks right on plain tensors."""

    def transformed(self, x, k, representation):
        features = representation.features
        if features is None or features.fields["user_id"].is_leaf:
            return x
        return x + features.fields["user_id"].sum(1, keepdim=True)


def test_the_cut_is_checked_in_a_whole_model():
    with pytest.raises(AssertionError, match=r"tables user past the boundary \(gradient.at: representation\)"):
        check_head(LeaksOnlyInAModel)
