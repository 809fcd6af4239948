"""Overlap of masks against sets of connections in plain Python."""

import itertools
import math

import pytest
import torch

from torchrec_mtl.findings import MatrixFinding, TableFinding
from torchrec_mtl.heads.overlap import dead_connections, overlap_findings

SHAPES = [(5, 4), (4, 3)]
LAYERS = ("layer 1 (5 x 4)", "layer 2 (4 x 3)")


def random_masks(tasks, shapes=SHAPES, density=0.4, seed=0):
    size = sum(math.prod(shape) for shape in shapes)
    return torch.rand(tasks, size, generator=torch.Generator().manual_seed(seed)) < density


def names(tasks):
    return tuple(f"task{k}" for k in range(tasks))


def findings(masks, shapes=SHAPES, layers=LAYERS):
    found = overlap_findings(masks, shapes, names(len(masks)), layers)
    tables = {f.title: f for f in found if isinstance(f, TableFinding)}
    matrices = {f.title.removeprefix("Jaccard index, "): f for f in found if isinstance(f, MatrixFinding)}
    pairs = tables.get("Connections that two tasks share")
    return pairs, tables["Connections that each task keeps"], matrices


def connections(masks, shapes=SHAPES, layers=LAYERS):
    """layer -> for each task, the set of its (input, output)."""
    found, start = {}, 0
    for layer, (rows, columns) in zip(layers, shapes, strict=True):
        found[layer] = [
            {(i, j) for i in range(rows) for j in range(columns) if bool(mask[start + i * columns + j])}
            for mask in masks
        ]
        start += rows * columns
    return found


def pair_rows(masks):
    """What the table must say, from sets."""
    of_layers = connections(masks)
    sizes = dict(zip(LAYERS, map(math.prod, SHAPES), strict=True))
    groups = [*([layer] for layer in LAYERS), list(LAYERS)]
    for group in groups:
        for i, j in itertools.combinations(range(len(masks)), 2):
            a = {(layer, c) for layer in group for c in of_layers[layer][i]}
            b = {(layer, c) for layer in group for c in of_layers[layer][j]}
            either = len(a) + len(b)
            expected = sum(len(of_layers[layer][i]) * len(of_layers[layer][j]) / sizes[layer] for layer in group)
            yield (
                group[0] if len(group) == 1 else "all layers",
                f"task{i}, task{j}",
                len(a & b),
                len(a - b),
                len(b - a),
                sum(sizes[layer] for layer in group) - len(a | b),
                len(a & b) / len(a | b) if a | b else 0.0,
                expected / (either - expected) if either else 0.0,
            )


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_pairs_are_what_sets_say(tasks, density):
    masks = random_masks(tasks, density=density, seed=tasks)
    pairs, _, _ = findings(masks)
    for row, expected in zip(pairs.rows, pair_rows(masks), strict=True):
        assert row[:6] == expected[:6]
        assert row[6:] == pytest.approx(expected[6:], rel=1e-12)
        assert [type(cell) for cell in row] == [str, str, int, int, int, int, float, float]


def test_shared_private_and_dead_add_up_to_all_connections():
    pairs, _, _ = findings(random_masks(4))
    sizes = {LAYERS[0]: 20, LAYERS[1]: 12, "all layers": 32}
    assert len(pairs.rows) == 3 * 6
    assert all(sum(row[2:6]) == sizes[row[0]] for row in pairs.rows)


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_what_tasks_keep_is_what_sets_say(tasks):
    masks = random_masks(tasks, density=0.2, seed=7)
    _, kept, _ = findings(masks)
    expected = []
    for layer, (inputs, outputs) in zip(LAYERS, SHAPES, strict=True):
        of_tasks = connections(masks)[layer]
        of_tasks += [set().union(*of_tasks)] if tasks > 1 else []
        for name, mine in zip((*names(tasks), "(any task)"), of_tasks, strict=False):
            dead = inputs - len({i for i, _ in mine}), outputs - len({j for _, j in mine})
            expected.append((layer, name, len(mine), len(mine) / (inputs * outputs), *dead))
    half = len(expected) // 2
    for one, two in zip(expected[:half], expected[half:], strict=True):
        count = one[2] + two[2]
        expected.append(("all layers", one[1], count, count / 32, one[4] + two[4], one[5] + two[5]))
    assert kept.rows == tuple(expected)


def test_matrices_are_symmetric_with_ones_on_the_diagonal_and_say_what_the_pairs_say():
    pairs, _, matrices = findings(random_masks(4))
    assert list(matrices) == [*LAYERS, "all layers"]
    for layer, matrix in matrices.items():
        assert matrix.rows == matrix.columns == names(4)
        values = torch.tensor(matrix.values, dtype=torch.float64)
        assert torch.equal(values, values.T)
        assert values.diagonal().tolist() == [1.0] * 4
        upper = [values[i, j].item() for i, j in itertools.combinations(range(4), 2)]
        assert upper == [row[6] for row in pairs.rows if row[0] == layer]


def test_random_masks_at_20_per_cent_have_the_jaccard_of_chance():
    shapes, layers = [(720, 512), (512, 256), (256, 128)], ("a", "b", "c")
    masks = random_masks(2, shapes, density=0.2)
    pairs, _, _ = findings(masks, shapes, layers)
    for row in pairs.rows:
        assert row[6] == pytest.approx(0.04 / 0.36, abs=0.01)  # 0.111
        assert row[7] == pytest.approx(0.04 / 0.36, abs=0.005)
    assert pairs.rows[-1][6] == pytest.approx(0.04 / 0.36, abs=0.002)
    assert sum(pairs.rows[-1][2:6]) == 532_480


def test_chance_over_all_layers_knows_that_layers_differ_in_density():
    masks = torch.zeros(2, 32, dtype=torch.bool)
    masks[:, :20] = True  # all of the first layer, nothing of the second
    pairs, _, _ = findings(masks)
    assert pairs.rows[-1][6:] == (1.0, 1.0)
    assert pairs.rows[1][6:] == (0.0, 0.0)  # 0/0


def test_one_task_has_no_pairs_and_no_matrices():
    pairs, kept, matrices = findings(random_masks(1))
    assert pairs is None
    assert matrices == {}
    assert [row[1] for row in kept.rows] == ["task0"] * 3


def test_one_layer_is_not_said_twice():
    pairs, kept, matrices = findings(random_masks(2, [(5, 4)]), [(5, 4)], ("only",))
    assert {row[0] for row in (*pairs.rows, *kept.rows)} == set(matrices) == {"only"}


def test_empty_masks_share_nothing_and_all_ones_share_everything():
    masks = torch.stack([torch.zeros(32), torch.zeros(32), torch.ones(32), torch.ones(32)]).bool()
    pairs, kept, matrices = findings(masks)
    found = {row[1]: row[2:] for row in pairs.rows if row[0] == "all layers"}
    assert found["task0, task1"] == (0, 0, 0, 32, 0.0, 0.0)
    assert found["task0, task2"] == (0, 0, 32, 0, 0.0, 0.0)
    assert found["task2, task3"] == (32, 0, 0, 0, 1.0, 1.0)
    assert matrices["all layers"].values[0] == (1.0, 0.0, 0.0, 0.0)
    assert {row[1]: row[2:] for row in kept.rows if row[0] == "all layers"} == {
        "task0": (0, 0.0, 9, 7),
        "task1": (0, 0.0, 9, 7),
        "task2": (32, 1.0, 0, 0),
        "task3": (32, 1.0, 0, 0),
        "(any task)": (32, 1.0, 0, 0),
    }


def test_dead_connections_are_those_that_no_task_has():
    masks = random_masks(4, density=0.2)
    expected = [not any(bool(mask[n]) for mask in masks) for n in range(32)]
    assert dead_connections(masks).tolist() == expected
    _, kept, _ = findings(masks)
    assert 32 - kept.rows[-1][2] == sum(expected)
