from pathlib import Path

import pytest

from tests.unit.tuning.studies import SPACE, study_in, write_space
from torchrec_mtl.config.load import ConfigError
from torchrec_mtl.tuning.study import open_study


def problems(folder, *words, **replaced):
    write_space(folder, **replaced)
    with pytest.raises(ConfigError) as caught:
        study_in(folder, *words)
    return caught.value.problems


def test_a_setting_that_is_not_there_is_found_once_with_a_guess(folder):
    found = problems(folder, search={"optim.dense.lrr": {"low": 0.1, "high": 0.2}})
    assert found == ["search.optim.dense.lrr: optim.dense.lrr: unknown key. Did you mean 'lr'?"]


def test_an_end_or_a_choice_that_cannot_be_is_named(folder):
    search = {
        "optim.dense.lr": {"low": -1.0, "high": 0.2},
        "head.tower": {"choices": [[8], ["wide"]]},
        "data.batch_size": {"low": 60, "high": 64},
    }
    found = problems(folder, search=search)
    assert any(
        line.startswith("search.optim.dense.lr, -1.0: optim.dense.lr: expected a number above 0") for line in found
    )
    assert any(line.startswith("search.head.tower, ['wide']: head.tower.0: ") for line in found)
    assert any(line.startswith("search.data.batch_size, 60: data.batch_size: 60 is not a multiple") for line in found)


def test_choices_that_do_not_go_together_are_found_though_each_is_fine_alone(folder):
    search = {
        "head": {"choices": [{"type": "shared_bottom", "tower": [8]}, {"type": "single_task", "tower": [8]}]},
        "gradient": {"choices": [{"type": "sum"}, {"type": "pcgrad"}]},
    }
    [found] = problems(folder, search=search)
    assert found.startswith("search, head={")
    assert "gradient: 'pcgrad' cannot act under head 'single_task'" in found


def test_what_tuning_sets_itself_cannot_be_searched(folder):
    search = {"train.seed": {"low": 1, "high": 5}, "data.eval": {"choices": ["a.parquet", "b.parquet"]}}
    assert problems(folder, search=search) == [
        "search.train.seed: tuning sets this itself; remove it",
        "search.data.eval: tuning sets this itself; remove it",
    ]


def test_without_validation_rows_nothing_can_be_scored(folder):
    assert "data.eval: missing in the config; trials are scored on its rows" in problems(folder, "data.eval=null")


def test_problems_of_both_files_come_together(folder):
    (folder / "space.yaml").write_text(SPACE.replace("round", "rounds"))
    with pytest.raises(ConfigError) as caught:
        study_in(folder, "train.epoch=2")
    assert [line.partition(": ")[0] for line in caught.value.problems] == [
        str(folder / "space.yaml"),
        str(folder / "run.yaml"),
    ]


def test_overrides_hold_for_every_trial(folder):
    study = study_in(folder, "train.epochs=3")
    run = study.configure(("optim.dense.lr=0.05",))
    assert (run.train.epochs, run.optim.dense.lr) == (3, 0.05)


def test_without_test_rows_the_seeds_are_scored_on_the_validation_rows(folder):
    study = study_in(folder, "data.test=null")
    assert study.key(study.run, "seed")[2] == "validation"


def test_the_space_of_the_example_fits_its_config():
    example = Path(__file__).parents[3] / "examples" / "cdnow"
    study = open_study(example / "htlnet.yaml", (), example / "space.yaml", None, prepare=False)
    assert [objective.name for objective in study.objectives] == ["buys_again/auc", "spend/nrmse"]
