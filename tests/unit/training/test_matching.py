"""What a new run takes from an earlier one, by names and shapes."""

from __future__ import annotations

import pytest

from torchrec_mtl.training.matching import match, state_fits

EBC, EC, HEAD = "embeddings.ebc.embedding_bags.{}.weight", "embeddings.ec.embeddings.{}.weight", "objective.head.last"
STORED = {EBC.format("user"): (100, 8), EBC.format("user@click"): (100, 8), EC.format("item"): (60, 8), HEAD: (4, 2)}


@pytest.mark.parametrize(
    ("name", "shape", "source"),
    [
        (EBC.format("user"), (100, 8), EBC.format("user")),
        (EBC.format("user@click"), (100, 8), EBC.format("user@click")),
        (EBC.format("user@like"), (120, 8), EBC.format("user")),  # a task's copy starts from the shared table
        (EBC.format("item"), (60, 8), EC.format("item")),  # no sequence reads it any more
        (HEAD, (4, 2), HEAD),
    ],
)
def test_a_name_finds_what_it_stands_for(name: str, shape: tuple[int, ...], source: str) -> None:
    found = match({name: shape}, STORED, own={}, hashed=())
    assert found.taken == {name: source}
    assert found.fresh == {}
    assert found.unused == sorted(set(STORED) - {source})


def test_a_table_grows_and_does_not_shrink() -> None:
    wanted = {EBC.format("user"): (150, 8), EC.format("item"): (50, 8)}
    found = match(wanted, STORED, own={}, hashed={"item"})
    assert found.grown == {"user": (100, 50)}
    assert found.tables == ["user"]
    assert found.fresh == {
        EC.format("item"): "it has 50 rows, in the run 60: which of them to keep is not known",
    }


def test_a_table_of_hashed_ids_stays_as_large_as_it_was() -> None:
    name = EBC.format("user")
    grown = match({name: (150, 8)}, STORED, own={}, hashed={"user"})
    assert grown.fresh[name].endswith("its ids are hashed: with another number of rows every id has another row")
    assert match({name: (100, 8)}, STORED, own={}, hashed={"user"}).taken == {name: name}


def test_other_widths_and_shapes_are_fresh() -> None:
    name = EBC.format("user")
    found = match({name: (100, 16), HEAD: (4, 3), "objective.head.first": (2,)}, STORED, own={}, hashed=())
    assert found.taken == {}
    assert found.fresh == {
        name: "its dim is 16, in the run 8",
        HEAD: "its shape is 4 x 3, in the run 4 x 2",
        "objective.head.first": "not in the run",
    }


def test_what_is_the_new_run_s_own_is_not_taken() -> None:
    found = match({HEAD: (4, 2)}, STORED, own={HEAD: "its own"}, hashed=())
    assert (found.taken, found.fresh) == ({}, {HEAD: "its own"})


def test_a_shared_table_does_not_start_from_a_task_s() -> None:
    name = EBC.format("user")
    found = match({name: (100, 8)}, {EBC.format("user@click"): (100, 8)}, own={}, hashed=())
    assert found.fresh == {name: "not in the run"}


@pytest.mark.parametrize(
    ("state", "stored", "rows", "stored_rows", "fits"),
    [
        ((150, 8), (100, 8), 150, 100, True),
        ((150,), (100,), 150, 100, True),
        ((150,), (100, 8), 150, 100, False),  # row-wise Adagrad and Adagrad
        ((300,), (100,), 150, 100, False),  # a state a row and column part of a plan
        ((), (), 150, 100, True),
        ((3, 4), (3, 4), None, None, True),
        ((3, 4), (2, 4), None, None, False),
    ],
)
def test_a_state_grows_with_its_table(
    state: tuple[int, ...], stored: tuple[int, ...], rows: int | None, stored_rows: int | None, fits: bool
) -> None:
    assert state_fits(state, stored, rows, stored_rows) is fits
