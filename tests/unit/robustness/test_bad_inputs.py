"""Whatever is wrong with its input, a command says so and where, or goes on as documented; nothing stays half-done."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import bad_inputs
from benchmarks.bad_inputs_files import KINDS, spoil
from benchmarks.bad_inputs_kinds import Try, all_tries
from benchmarks.bad_inputs_runs import snapshot
from benchmarks.bad_inputs_tables import VALUES, Bad
from benchmarks.bad_inputs_tries import (
    FEATURES,
    LABELS,
    VERDICTS,
    Outcome,
    Workbench,
    call,
    judge,
    plain_config,
    seeded,
)
from benchmarks.bad_inputs_yaml import YAML_KINDS, override, spoil_yaml
from torchrec_mtl.config.load import ConfigError, load_config, parse
from torchrec_mtl.data.collect import collect
from torchrec_mtl.data.splits import open_data

FEW = settings.get_profile("few")
SEED = st.integers(0, 1_000_000)
TRIES = all_tries()


@contextmanager
def empty_folder() -> Iterator[Path]:
    """One an example: fixtures are made once a test."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def error_of(action: Callable[[], object], kind: type[ValueError] = ValueError) -> str | None:
    try:
        action()
    except kind as error:
        return str(error)
    return None


def came_to(bench: Workbench, trial: Try, rng: Random, folder: Path) -> tuple[str, Bad, Outcome]:
    """Give a command something bad; return the verdict, what was bad, and what it did."""
    words, bad = trial.make(rng, bench, folder)
    before = snapshot(folder)
    outcome = call(words, limit_s=60.0)
    after = snapshot(folder)
    left = bad_inputs.left_over(before, after) if outcome.status else []
    assert not [path for path in after if path.endswith(".proof")], "something foreign was run"
    return judge(outcome, bad, left), bad, outcome


def check(bench: Workbench, command: str, fits: Callable[[str], bool], data: st.DataObject) -> None:
    trial = data.draw(st.sampled_from([t for t in TRIES if t.command == command and fits(t.kind)]), "kind")
    with empty_folder() as folder:
        verdict, bad, outcome = came_to(bench, trial, seeded(data.draw(SEED, "seed")), folder)
        assert verdict in {"error", "accepted"}, (verdict, trial.kind, bad, outcome.said, outcome.error)


@pytest.mark.parametrize(
    "command", ["train", "train, eval", "evaluate", "predict", "check", "config check", "bench", "index", "search"]
)
@given(data=st.data())
@settings(FEW, max_examples=6)
def test_bad_tables_end_in_a_clear_error_or_are_masked_as_documented(bench, command, data):
    check(bench, command, lambda kind: kind in KINDS or kind == "file names", data)


@pytest.mark.parametrize(
    ("command", "examples"),
    [("config show", 12), ("config check", 6), ("check", 4), ("plan", 5), ("train", 5), ("bench", 4)],
)
def test_bad_configs_end_in_a_clear_error(bench, command, examples):
    @given(data=st.data())
    @settings(FEW, max_examples=examples)
    def examine(data):
        check(bench, command, lambda kind: kind.startswith("YAML") or kind == "override", data)

    examine()


@pytest.mark.parametrize(
    "command",
    ["evaluate", "predict", "report", "unshard", "train", "train, init_from", "index", "search", "index, add"],
)
@given(data=st.data())
@settings(FEW, max_examples=4)
def test_damaged_runs_and_indexes_end_in_a_clear_error(bench, command, data):
    check(bench, command, lambda kind: kind.startswith(("run: ", "index: ", "YAML")) and "train" not in kind, data)


@pytest.mark.parametrize(
    "command", ["train", "predict", "report", "unshard", "index", "search", "check", "plan", "bench"]
)
@given(data=st.data())
@settings(FEW, max_examples=3)
def test_what_cannot_be_written_ends_in_a_clear_error(bench, command, data):
    check(bench, command, lambda kind: kind == "place to write", data)


@given(kind=st.sampled_from(KINDS), seed=SEED, null_labels=st.sampled_from(["error", "mask"]))
@settings(FEW, max_examples=60)
def test_the_look_at_the_data_names_what_is_bad(bench, kind, seed, null_labels):
    with empty_folder() as folder:
        file = folder / "bad.parquet"
        bad = spoil(kind, seeded(seed), bench.rows, (*FEATURES, *LABELS), file)
        raw = plain_config(bench.folder, str(folder / "run"))
        raw["data"] |= {"train": str(file), "eval": None, "null_labels": null_labels}
        config = parse(raw)
        said = error_of(lambda: collect(open_data(config).train, config.data, config.features, config.tasks))
        assert bad.fails is None or bad.fails == (said is not None), (bad, said)
        assert said is None or any(place in said for place in (*bad.places, file.name)), said


@pytest.mark.parametrize("kind", ["negative", "huge ids"])
@pytest.mark.parametrize("how", ["drop", "clamp"])
@given(seed=SEED)
@settings(FEW, max_examples=5)
def test_ids_outside_their_table_are_dropped_or_clamped_where_asked_for(bench, kind, how, seed):
    with empty_folder() as folder:
        file = folder / "bad.parquet"
        bad = spoil(kind, seeded(seed), bench.rows, ("user_id", "item_id", "watched"), file)
        raw = plain_config(bench.folder, str(folder / "run"))
        raw["data"] |= {"train": str(file), "bad_ids": how}
        config = parse(raw)
        statistics = collect(open_data(config).train, config.data, config.features, config.tasks)
        (what,) = statistics.tolerated
        assert bad.places[0] in what
        assert statistics.tolerated[what] >= 10


@given(kind=st.sampled_from([*YAML_KINDS]), seed=SEED)
@settings(FEW, max_examples=50)
def test_a_config_is_read_or_all_that_is_wrong_with_it_is_told(bench, kind, seed):
    with empty_folder() as folder:
        file = folder / "bad.yaml"
        bad = spoil_yaml(kind, seeded(seed), plain_config(bench.folder, str(folder / "run")), file)
        said = error_of(lambda: load_config(file), ConfigError)
        assert str(file) in said if said is not None else bad.fails is not True, bad
        assert not file.with_suffix(".proof").exists()


@given(seed=SEED)
@settings(FEW, max_examples=20)
def test_an_override_is_applied_or_refused_by_name(bench, seed):
    with empty_folder() as folder:
        raw = plain_config(bench.folder, str(folder / "run"))
        word, _ = override(seeded(seed), raw)
        said = error_of(lambda: load_config(bench.write(raw, folder / "good.yaml"), [word]), ConfigError)
        assert said is None or "good.yaml" in said


def test_every_kind_reaches_every_command_that_can_get_it():
    kinds = {(t.kind, t.command) for t in TRIES}
    assert len(kinds) == len(TRIES)
    assert {t.command.partition(",")[0] for t in TRIES} == {
        *("train", "evaluate", "predict", "report", "bench", "plan", "index", "search", "unshard", "check"),
        *("config check", "config show"),
    }  # doctor, list, and config schema read nothing
    assert {*VALUES} < {*KINDS}


BAD = Bad("spoilt", ("there",), fails=True)


@pytest.mark.parametrize(
    ("outcome", "bad", "left", "expected"),
    [
        (Outcome(1, "error: it is there", None), BAD, [], "error"),
        (Outcome(1, "error: it is somewhere", None), BAD, [], "unclear"),
        (Outcome(1, "there, but no word of an error", None), BAD, [], "unclear"),
        (Outcome(1, "error: it is there", None), BAD, ["run/config.yaml"], "left over"),
        (Outcome(1, "error: it is there", KeyError("x")), BAD, [], "traceback"),
        (Outcome(0, "", None), BAD, [], "wrong"),
        (Outcome(0, "", None), Bad("not so bad"), [], "accepted"),
        (Outcome(1, "error: no", None), Bad("good", fails=False), [], "wrong"),
    ],
)
def test_verdicts(outcome, bad, left, expected):
    assert judge(outcome, bad, left) == expected
    assert expected in VERDICTS


def test_what_a_failed_command_leaves_is_seen_but_for_a_run_that_goes_on():
    before = {"bad.parquet": 1}
    assert bad_inputs.left_over(before, {**before, "run/config.yaml": 1}) == ["run/config.yaml"]
    begun = {**before, "run/config.yaml": 1, "run/checkpoints/step-000000003/.metadata": 1}
    assert bad_inputs.left_over(before, begun) == []
    partial = "run/checkpoints/.partial-step-000000006/__0_0.distcp"
    assert bad_inputs.left_over(before, {**begun, partial: 1}) == [partial]


def test_the_same_seed_makes_the_same_input_and_the_table_counts_it(bench, tmp_path):
    trial = next(t for t in TRIES if (t.kind, t.command) == ("truncated", "config check"))
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        found.append(bad_inputs.attempt(bench, trial, 3, 1, tmp_path / name))
    assert found[0]["what"] == found[1]["what"]
    assert found[0]["verdict"] == "error"
    table = bad_inputs.as_markdown({("truncated", "config check"): bad_inputs.Counter(["error", "error"])})
    assert table.splitlines()[-1] == "| all | all | 2 | 2 | 0 | 0 | 0 | 0 | 0 | 0 | 0 |"
    both = {("null", "train"): bad_inputs.Counter(error=2), ("null", "check"): bad_inputs.Counter(error=1, accepted=3)}
    assert bad_inputs.by_kind(both) == {("null", "all"): {"error": 3, "accepted": 3}}
