"""The plan of NCS4CVR's rounds, what the head concludes from them, and what it has to tell in the end."""

import copy
import math
from itertools import pairwise

import pytest
import torch

from tests.unit.heads.masked_head import (
    TWO,
    alone,
    flat,
    inputs,
    made,
    masked,
    play,
    random_masks,
    scores,
    set_distinct_weights,
    split,
)
from torchrec_mtl.heads.base import Phase

# The plan of phases


def names(head, epochs=1):
    return [phase.name for phase in head.phases(epochs)]


def rounds_of(task, count):
    return [f"{task}, round {r}" for r in range(count)]


@pytest.mark.parametrize(("choose", "count"), [("best", 4), ("any", 4), ("last", 3)])
@pytest.mark.parametrize("masks", ["own", "random"])
@pytest.mark.parametrize("tasks", [["a"], ["a", "b"], ["a", "b", "c"]], ids=len)
def test_each_task_has_its_rounds_and_then_all_train_together(tasks, masks, choose, count):
    head = made(tasks, rounds=3, masks=masks, choose=choose)
    assert names(head) == [name for task in tasks for name in rounds_of(task, count)] + ["joint"]
    assert [phase.tasks for phase in head.phases(1)] == [(t,) for t in tasks for _ in range(count)] + [None]


@pytest.mark.parametrize("tasks", [["a"], ["a", "b"], ["a", "b", "c"]], ids=len)
def test_one_mask_is_found_by_all_tasks_together(tasks):
    *trials, joint = made(tasks, rounds=2, masks="one").phases(1)
    assert [phase.name for phase in trials] == rounds_of("all", 3)
    assert {phase.tasks for phase in trials} == {tuple(tasks)}
    assert joint.tasks is None


def test_dense_masks_need_no_rounds():
    head = made(masks="dense")
    assert head.phases(3) == (Phase("joint", 3),)
    assert not head.options.needs_evaluation
    assert head.end_phase(Phase("joint", 3), {}) is None
    assert names(made(masks="dense", warmup_steps=5)) == ["warm-up", "joint"]
    assert [phase.rewind for phase in made(masks="dense", warmup_steps=5).phases(1)] == ["none", "none"]


@pytest.mark.parametrize("how", ["all", "dense", "none"])
@pytest.mark.parametrize("masks", ["own", "one"])
def test_every_phase_but_the_first_rewinds(masks, how):
    phases = made(rounds=2, rewind=how, masks=masks).phases(1)
    assert [phase.rewind for phase in phases] == ["none"] + [how] * (len(phases) - 1)
    assert not any(phase.origin for phase in phases)


def test_the_first_round_starts_where_the_warm_up_ends_and_others_go_back_there():
    warm_up, first, *others = made(rounds=2, warmup_steps=7).phases(4)
    assert warm_up == Phase("warm-up", 4, steps=7, trial=True, origin=True)
    assert (first.name, first.rewind) == ("click, round 0", "none")
    assert {phase.rewind for phase in others} == {"all"}
    assert not any(phase.origin for phase in (first, *others))


def test_rounds_are_trials_of_their_own_length_and_only_the_last_phase_alternates():
    *trials, joint = made(rounds=2, round_epochs=3, batches="alternate").phases(5)
    assert all(phase.trial and phase.epochs == 3 and not phase.alternate for phase in trials)
    assert joint == Phase("joint", 5, alternate=True, rewind="all")
    assert not made().phases(5)[-1].alternate


# The end of a round


def test_defaults_leave_what_the_authors_files_are_called():
    """Survivors n - round(r n) of all layers together: 66.87, 44.72, 29.91, and 20.0 %."""
    head = made(in_features=720, shared=(512, 256, 128))
    play(head, scores("click", "auc", *[0.5] * 5), head.phases(1)[:5])
    left = [int(head.rounds.of_round(0, r).sum()) for r in range(5)]
    rate = 1 - 0.2**0.25
    assert left[0] == 532_480
    assert all(after == before - round(rate * before) for before, after in pairwise(left))
    assert [f"{100 * n / 532_480:.2f}" for n in left] == ["100.00", "66.87", "44.72", "29.91", "20.00"]
    assert left[-1] == 106_496
    per_layer = [float(m.float().mean()) for m in split(head, head.rounds.of_round(0, 4))]
    assert max(per_layer) - min(per_layer) < 0.01  # the weights here are alike in all layers


def one_round(weights_seed=0, **options):
    """Mask before and after a round, and the weights it was pruned by."""
    head = made(rounds=2, shared=(30, 20), in_features=20, **options)
    before = random_masks(head, density=0.8)[0]
    head.rounds.begin([0], 1, before)
    set_distinct_weights(head, weights_seed)
    with torch.no_grad():
        head.layers.weights[1].mul_(0.3)  # a layer of smaller weights
    head.end_phase(head.phases(1)[1], {"click": {"auc": 0.5}})
    return head, before, head.rounds.of_round(0, 2)


def test_the_threshold_is_one_for_all_layers():
    head, before, after = one_round()
    magnitude = flat(head.layers.weights).abs()
    assert not (after & ~before).any()
    assert magnitude[after].min() >= magnitude[before & ~after].max()
    kept = [float(a.sum() / b.sum()) for a, b in zip(split(head, after), split(head, before), strict=True)]
    assert kept[1] < kept[0] - 0.1


def test_a_threshold_of_each_layer_prunes_all_layers_alike():
    head, before, after = one_round(threshold="layer")
    rate = 1 - 0.2**0.5
    parts = zip(split(head, before), split(head, after), head.layers.weights, strict=True)
    for b, a, weight in parts:
        assert a.sum() == b.sum() - round(rate * int(b.sum()))
        assert not (a & ~b).any()
        assert weight[a].abs().min() >= weight[b & ~a].abs().max()


def test_a_round_changes_nothing_but_what_is_kept():
    head = made(rounds=2, grow=0.2)
    assert set(head.state_kept) == {"rounds.masks", "rounds.scores", "rounds.used", "growth.summed"}
    parameters = copy.deepcopy(list(head.parameters()))
    head.end_phase(head.phases(1)[0], {"click": {"auc": 0.5}})
    assert all(map(torch.equal, parameters, head.parameters()))
    assert head.rounds.used.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("options", "metric", "values", "expected"),
    [
        ({}, "auc", (0.9, 0.6, 0.8, 0.7), 2),
        ({"choose": "any"}, "auc", (0.9, 0.6, 0.8, 0.7), 0),
        ({"choose": "any"}, "auc", (0.5, 0.6, 0.8, 0.7), 2),
        ({"binary": ()}, "rmse", (0.1, 0.6, 0.4, 0.7), 2),
        ({"binary": (), "choose": "any"}, "rmse", (0.1, 0.6, 0.4, 0.7), 0),
        ({"choose_by": "loss"}, "loss", (0.1, 0.6, 0.5, 0.7), 2),
        ({"binary": (), "choose_by": "loss"}, "loss", (0.1, 0.6, 0.5, 0.4), 3),
        ({"choose": "last"}, "auc", (0.9, 0.8, 0.7), 3),
        ({}, "auc", (0.9, 0.7, 0.7, 0.7), 1),
    ],
    ids=str,
)
def test_a_task_takes_its_best_round(options, metric, values, expected):
    head = made(rounds=3, **options)
    trials = [phase for phase in head.phases(1) if phase.tasks == ("click",)]
    other = {"auc": 0.5, "rmse": 0.5, "loss": 0.5} | {metric: 0.0}
    metrics = {name: found | {"buy": other} for name, found in scores("click", metric, *values).items()}
    ends = play(head, metrics, trials)
    assert head.rounds.used.tolist() == [expected, 0]
    assert torch.equal(head.rounds.current()[0], head.rounds.of_round(0, expected))
    assert ends[trials[-1].name].values["prune/click/chosen"] == expected
    assert f"click takes round {expected}" in ends[trials[-1].name].text


def test_one_mask_is_chosen_by_the_sum_of_the_losses():
    head = made(rounds=2, masks="one")
    losses = {"all, round 0": (0.1, 0.1), "all, round 1": (0.1, 0.9), "all, round 2": (0.4, 0.5)}
    play(head, {name: {t: {"loss": v} for t, v in zip(TWO, found, strict=True)} for name, found in losses.items()})
    assert head.rounds.used.tolist() == [2, 2]
    masks = head.rounds.current()
    assert torch.equal(masks[0], masks[1])
    assert int(masks[0].sum()) == pytest.approx(0.2 * head.layers.num_connections, abs=1)


def test_the_end_of_a_round_says_what_was_found():
    head = made(rounds=1, density=0.5)
    ends = play(head, scores("click", "auc", 0.9, 0.75), head.phases(1)[:2])
    first, last = ends.values()
    assert first.values == {"prune/click/density": 1.0, "prune/click/auc": 0.9}
    assert first.text == "click, round 0: 100.0% of 50 connections, auc 0.90000"
    assert last.values == {"prune/click/density": 0.5, "prune/click/auc": 0.75, "prune/click/chosen": 1}
    assert last.text == "click, round 1: 50.0% of 50 connections, auc 0.75000; click takes round 1 (50.0%)"


def test_a_round_that_cannot_be_scored_ends_the_run_at_once_with_the_remedies():
    head = made(rounds=2)
    with pytest.raises(ValueError, match=r"click, round 0: auc is undefined on data\.eval.*--fresh"):
        play(head, scores("click", "auc", math.nan), head.phases(1)[:1])


def test_nothing_is_said_of_a_score_that_nobody_asked_for():
    head = made(rounds=2, choose="last")
    assert play(head, {}, head.phases(1)[:1])["click, round 0"].text == "click, round 0: 100.0% of 50 connections"


def test_rounds_that_have_not_been_are_not_listed():
    head = made(rounds=2)
    play(head, scores("click", "auc", 0.5), head.phases(1)[:1])
    assert [(row[0], row[1], row[5]) for row in head.findings()[0].rows] == [
        ("click", 0, ""),
        ("click", 1, "taken"),
        ("buy", 0, "taken"),
    ]


def test_the_last_round_needs_no_evaluation():
    head = made(rounds=2, choose="last")
    play(head, {})
    assert head.rounds.used.tolist() == [2, 2]


def test_tasks_that_train_later_change_nothing_of_the_earlier_ones():
    head = made(rounds=2)
    metrics = scores("click", "auc", 0.5, 0.8, 0.7) | scores("buy", "auc", 0.5, 0.6, 0.7)
    play(head, metrics, head.phases(1)[:3])
    before = head.rounds.current()[0].clone()
    play(head, metrics, head.phases(1)[3:])
    assert torch.equal(head.rounds.current()[0], before)
    assert head.rounds.used.tolist() == [1, 2]
    assert not torch.equal(*head.rounds.current())


def test_phases_that_are_no_rounds_conclude_nothing():
    head = made(rounds=2, warmup_steps=3)
    before = copy.deepcopy(head.state_dict())
    for phase in (head.phases(1)[0], head.phases(1)[-1]):
        assert head.end_phase(phase, {"click": {"auc": 0.5}}) is None
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


@pytest.mark.parametrize("choose", ["best", "last"])
def test_random_masks_have_the_counts_of_learned_ones_layer_by_layer_and_differ(choose):
    metrics = scores("click", "auc", *[0.5] * 3) | scores("buy", "auc", *[0.5] * 3)
    heads = {kind: made(rounds=2, shared=(30, 20), masks=kind, choose=choose) for kind in ("own", "random")}
    for head in heads.values():
        play(head, metrics)
    learned, drawn = (head.rounds.current() for head in heads.values())
    for k in range(2):
        assert not torch.equal(learned[k], drawn[k])
        counts = [[int(m.sum()) for m in split(heads["own"], mask)] for mask in (learned[k], drawn[k])]
        assert counts[0] == counts[1]
    assert not torch.equal(drawn[0], drawn[1])


def test_equal_learned_masks_are_shuffled_apart_and_by_another_seed_otherwise():
    def drawn(seed):
        head = made(rounds=1, density=0.5, masks="random", seed=seed)
        for phase in head.phases(1)[:-1]:
            set_distinct_weights(head, 0)
            head.end_phase(phase, {task: {"auc": 0.5} for task in TWO})
        return head.rounds.current()

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert not torch.equal(*drawn(0))


@pytest.mark.parametrize("masks", ["own", "one", "random"])
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_fresh_head_goes_on_from_a_state_dict(stop, masks):
    head, other = (made(rounds=2, masks=masks, grow=0.2) for _ in range(2))
    phases = head.phases(1)
    stop = min(stop, len(phases) - 1)
    metrics = {
        phase.name: {t: {"auc": 0.5 + i % 3 / 10, "loss": i / 10} for t in TWO} for i, phase in enumerate(phases)
    }
    play_with_steps(head, metrics, phases[:stop])
    other.load_state_dict(head.state_dict())
    for each in (head, other):
        play_with_steps(each, metrics, phases[stop:])
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in head.state_dict().items())
    assert torch.equal(*(torch.stack(list(each(inputs()).logits.values())) for each in (head, other)))
    assert head.rounds.used.tolist() == other.rounds.used.tolist() != [0, 0]


# Growth


def play_with_steps(head, metrics, phases):
    """As ``play``, with a step before each end."""
    for number, phase in enumerate(phases):
        head.begin_phase(phase)
        head.activate(phase.tasks)
        set_distinct_weights(head, number)
        out = head(inputs(seed=number)).logits
        head.zero_grad()
        sum(out[task].square().sum() for task in phase.tasks or head.tasks).backward()
        head.set_progress(0.5, number)
        head.end_phase(phase, metrics.get(phase.name, {}))


def grown_by(head, phase, task):
    """Return the mask after a phase, and what a dense loop says it is."""
    before = head.rounds.current()[head.tasks.index(task)].clone()
    head.begin_phase(phase)
    head.activate(phase.tasks)
    mask = before.float().requires_grad_()
    others = [m.float() for m in head.rounds.current()]
    networks = [mask if name == task else others[k] for k, name in enumerate(head.tasks)]
    out = head(inputs()).logits
    sum(out[name].square().sum() for name in phase.tasks).backward()
    head.set_progress(0.5, 1)
    head.end_phase(phase, {})
    # d loss / d (W M) = (d loss / d M) / W
    z = torch.stack([alone(head, networks[k], k, inputs().shared)[:, 0] for k, name in enumerate(head.tasks)])
    z = product_logits(z) if head.chain else z
    loss = sum(z[head.tasks.index(name)].square().sum() for name in phase.tasks)
    weights = flat(head.layers.weights)
    gradient = (torch.autograd.grad(loss, mask)[0] / weights).abs()
    left = int(before.sum())
    target = left - round((1 - 0.2 ** (1 / head.options.rounds)) * left)
    grown = round(head.options.grow * target)
    stays = sorted(before.nonzero()[:, 0].tolist(), key=lambda n: -weights[n].abs())[: target - grown]
    comes = sorted((~before).nonzero()[:, 0].tolist(), key=lambda n: -gradient[n])[:grown]
    assert grown > 0
    return {*head.rounds.current()[head.tasks.index(task)].nonzero()[:, 0].tolist()}, {*stays, *comes}


def product_logits(z):
    """Log-odds of the running products of probabilities, in [K, B]."""
    p = torch.sigmoid(z.double()).cumprod(0)
    return torch.log(p / (1 - p)).float()


def test_what_grows_has_the_largest_gradients_of_its_task():
    head = made(rounds=2, grow=0.3, choose="last", shared=(20, 10))
    set_distinct_weights(head, 0)
    masked(head, random_masks(head))
    found, expected = grown_by(head, head.phases(1)[1], "click")
    assert found == expected


def test_in_a_chain_what_grows_has_the_largest_gradients_of_the_network_that_is_pruned():
    head = made(rounds=2, grow=0.3, choose="last", shared=(20, 10), chain=True)
    set_distinct_weights(head, 0)
    masked(head, random_masks(head))
    found, expected = grown_by(head, head.phases(1)[3], "buy")
    assert found == expected


def test_with_growth_as_many_stay_and_some_come_back():
    plain, grown = (made(rounds=3, choose="last", shared=(30, 20), grow=g) for g in (0.0, 0.2))
    for head in (plain, grown):
        play_with_steps(head, {}, head.phases(1)[:3])
    for r in range(4):
        assert plain.rounds.density(0, r) == grown.rounds.density(0, r)
    one, two = grown.rounds.of_round(0, 1), grown.rounds.of_round(0, 2)
    assert torch.equal(one, plain.rounds.of_round(0, 1))  # nothing had been pruned before
    assert (two & ~one).sum() == round(0.2 * int(two.sum()))


def test_gradients_of_one_round_do_not_count_in_the_next():
    head = made(rounds=3, choose="last", grow=0.3, shared=(20, 10))
    play_with_steps(head, {}, head.phases(1)[:1])
    assert (head.growth.summed == 0).all()
    found, expected = grown_by(head, head.phases(1)[1], "click")
    assert found == expected


def test_an_evaluation_counts_towards_no_growth():
    head = made(rounds=2, grow=0.2)
    head.eval()
    head(inputs()).logits["click"].sum().backward()
    head.set_progress(0.5, 1)
    assert (head.growth.summed == 0).all()
    assert made().growth is None


# Findings


def tables(head):
    return {finding.title: finding for finding in head.findings()}


def test_dense_masks_have_nothing_to_tell():
    assert made(masks="dense").findings() == ()


def test_shared_private_and_dead_connections_add_up():
    head = made(in_features=720, shared=(512, 256, 128))
    masks = random_masks(head, density=0.2)
    pairs = tables(masked(head, masks))["Connections that two tasks share"].rows
    layer, both, *counts = pairs[-1][:6]
    assert (layer, both) == ("all layers", "click, buy")
    a, b = masks
    assert counts == [int(m.sum()) for m in (a & b, a & ~b, b & ~a, ~(a | b))]
    assert sum(counts) == 532_480
    assert [row[0] for row in pairs] == [
        "layer 1 (720 x 512)",
        "layer 2 (512 x 256)",
        "layer 3 (256 x 128)",
        "all layers",
    ]
    for row in pairs:
        assert row[6] == pytest.approx(0.04 / 0.36, abs=0.01)  # Jaccard, and of chance
        assert row[7] == pytest.approx(0.04 / 0.36, abs=0.01)


def test_inputs_and_outputs_are_told_apart():
    """Of 6 inputs click reads 4; of 5 units buy has 4; two connections are neither's."""
    head = made()
    masks = torch.ones(2, 50, dtype=torch.bool)
    split(head, masks[0])[0][:, [1, 4]] = False
    split(head, masks[1])[0][3, :] = False
    kept = {row[:2]: row for row in tables(masked(head, masks))["Connections that each task keeps"].rows}
    assert kept["layer 1 (6 x 5)", "click"][2:] == (20, 20 / 30, 2, 0)
    assert kept["layer 1 (6 x 5)", "buy"][2:] == (24, 24 / 30, 0, 1)
    assert kept["layer 2 (5 x 4)", "click"][2:] == (20, 1.0, 0, 0)
    assert kept["all layers", "(any task)"][2:] == (48, 48 / 50, 0, 0)


def test_rounds_are_told_with_the_one_that_was_taken():
    head = made(rounds=2, density=0.25, binary=("click",))
    play(head, scores("click", "auc", 0.5, 0.8, 0.7) | scores("buy", "rmse", 0.1, 0.3, 0.2))
    table = tables(head)["Rounds of pruning"]
    assert table.rows == (
        ("click", 0, 1.0, "auc", 0.5, ""),
        ("click", 1, 0.5, "auc", 0.8, "taken"),
        ("click", 2, pytest.approx(0.26), "auc", 0.7, ""),
        ("buy", 0, 1.0, "rmse", 0.1, ""),
        ("buy", 1, 0.5, "rmse", 0.3, ""),
        ("buy", 2, pytest.approx(0.26), "rmse", 0.2, "taken"),
    )


def test_one_mask_is_told_once_and_unknown_scores_are_nan():
    head = made(rounds=2, masks="one", choose="last")
    play(head, {})
    rows = tables(head)["Rounds of pruning"].rows
    assert [row[0] for row in rows] == ["all"] * 3
    assert all(math.isnan(row[4]) for row in rows)
    assert [row[5] for row in rows] == ["", "", "taken"]
