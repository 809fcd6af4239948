import pytest
import yaml

from tests.unit.tuning.studies import study_in, write_space
from torchrec_mtl.config.load import ConfigError
from torchrec_mtl.tuning.folder import check, enter, note_trials, num_trials


@pytest.fixture
def out(folder, study):
    made = folder / "out"
    made.mkdir()
    enter(made, study, fresh=False)
    (made / "runs.jsonl").write_text("{}\n")
    return made


def changes(out, study):
    with pytest.raises(ConfigError) as caught:
        check(out, study, fresh=False)
    assert "take another --out, or --fresh" in str(caught.value)
    return caught.value.problems


def test_the_same_study_goes_on(out, folder):
    check(out, study_in(folder), fresh=False)


def test_a_changed_config_is_refused_by_name(out, folder):
    found = changes(out, study_in(folder, "train.epochs=7", "head.tower=[4]"))
    assert "config.train.epochs: was 1, is 7" in found
    assert "config.head.tower.0: was 8, is 4" in found


def test_a_changed_space_is_refused_by_name(out, folder):
    raw = yaml.safe_load((folder / "space.yaml").read_text())
    raw["search"]["optim.dense.lr"]["high"] = 0.2
    write_space(folder, search=raw["search"], objectives={"click": "auc"}, round=3)
    found = changes(out, study_in(folder))
    assert "search.optim.dense.lr.high: was 0.1, is 0.2" in found
    assert "round: was 2, is 3" in found
    assert any(line.startswith("objectives: was ") for line in found)


def test_changed_data_are_refused(out, folder, study):
    (folder / "train.parquet").write_bytes((folder / "validation.parquet").read_bytes())
    assert changes(out, study_in(folder)) == [
        "data files: their names, sizes, or row groups are not those of the trials before"
    ]


def test_what_has_no_part_in_the_trials_may_change(out, folder):
    write_space(folder, seeds=[5, 6, 7], front=3, timeout_s=60)
    check(out, study_in(folder, "run_dir=elsewhere", "train.seed=3", "train.references=true"), fresh=False)


def test_how_many_trials_there_were_is_noted_and_is_no_other_study(out, folder, study):
    assert (num_trials(folder), num_trials(out)) == (0, 0)
    note_trials(out, study, 16)
    assert num_trials(out) == 16
    check(out, study_in(folder), fresh=False)
    enter(out, study, fresh=True)
    assert num_trials(out) == 0


def test_fresh_forgets_what_tuning_wrote_and_nothing_else(out, folder):
    (out / "mine.txt").write_text("mine")
    (out / "front-a-b.svg").write_text("old")
    other = study_in(folder, "train.epochs=7")
    check(out, other, fresh=True)
    enter(out, other, fresh=True)
    assert {path.name for path in out.iterdir()} == {"mine.txt", "study.yaml"}
    check(out, other, fresh=False)


def test_a_file_is_no_folder(folder, study):
    with pytest.raises(ConfigError, match="a file lies there, where the results need a folder"):
        check(folder / "run.yaml", study, fresh=False)


@pytest.mark.parametrize("fresh", [False, True])
def test_what_something_else_wrote_is_left_alone(folder, study, fresh):
    bench = folder / "bench"
    bench.mkdir()
    (bench / "runs.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"runs\.jsonl there, and no study that can be read; take another --out"):
        check(bench, study, fresh=fresh)
