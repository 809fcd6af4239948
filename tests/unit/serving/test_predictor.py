"""The predictor: any form of columns, defaults, errors by column, one user with many candidates."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mtl.serving.export import Options, export_run
from torchrec_mtl.serving.predictor import Predictor


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Predictor:
    return Predictor.load(bundle)


@pytest.fixture(scope="module")
def table(run: Path) -> pa.Table:
    return pq.read_table(run.parent / "rows.parquet")


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, values in a.items():
        np.testing.assert_allclose(values, b[name], rtol=1e-5, atol=1e-6)


def test_dicts_frames_and_tables_say_the_same(predictor: Predictor, table: pa.Table):
    wanted = predictor(table)
    assert tuple(wanted) == predictor.outputs == ("click", "long_view", "watch_time")
    assert all(v.dtype == np.float32 and v.shape == (300,) for v in wanted.values())
    names = [column.name for column in predictor.columns]
    equal(predictor(table.select(names).to_pydict()), wanted)
    equal(predictor(table.to_batches()[0]), {name: v[: table.to_batches()[0].num_rows] for name, v in wanted.items()})
    frame = pd.DataFrame({name: table[name].to_pandas() for name in names})
    equal(predictor(frame), wanted)
    equal(predictor({name: table[name].to_numpy(zero_copy_only=False) for name in names}), wanted)
    assert predictor.columns[0].kind == "id"


def test_rows_do_not_know_of_one_another(predictor: Predictor, table: pa.Table, monkeypatch: pytest.MonkeyPatch):
    whole = predictor(table)
    equal(predictor(table.slice(7, 1)), {name: v[7:8] for name, v in whole.items()})
    monkeypatch.setattr("torchrec_mtl.serving.predictor._AT_ONCE", 64)
    equal(predictor(table), whole)
    nothing = predictor(table.slice(0, 0))
    assert all(v.shape == (0,) for v in nothing.values())


def test_missing_columns_and_nulls_are_the_default(predictor: Predictor, table: pa.Table):
    names = [column.name for column in predictor.columns]
    for name in names:
        nulls = table.set_column(table.column_names.index(name), name, pa.nulls(300))
        equal(predictor(table.drop_columns([name])), predictor(nulls))
    assert not np.allclose(predictor(table.drop_columns(["user_id"]))["click"], predictor(table)["click"])
    defaults = {column.name: column.default for column in predictor.columns}
    assert defaults["user_id"] == "no id"
    assert defaults["watched"] == "an empty history"
    assert defaults["age"] == "the mean of the training data"


def test_one_user_is_every_row_with_that_user(predictor: Predictor, table: pa.Table):
    mine = [c.name for c in predictor.columns if c.sides == ("user",)]
    others = [c.name for c in predictor.columns if "user" not in c.sides]
    assert {"user_id", "watched"} <= set(mine)
    rows = table.slice(0, 50)
    for number in (0, 3, 9):
        user = {name: rows[name][number].as_py() for name in mine}
        for name in mine:
            same = rows[name].take(pa.array([number] * 50))
            rows = rows.set_column(rows.column_names.index(name), name, same)
        equal(predictor.score(user, rows.select(others)), predictor(rows))
        rows = table.slice(0, 50)
    context = {"hour": rows["hour"][4].as_py()}
    whole = rows.set_column(rows.column_names.index("hour"), "hour", rows["hour"].take(pa.array([4] * 50)))
    without = [name for name in others if name != "hour"]
    equal(predictor.score(user, rows.select(without), context), predictor.score(user, whole.select(others)))


def test_several_threads_at_once(predictor: Predictor, table: pa.Table):
    parts = [table.slice(10 * i, 10) for i in range(20)]
    wanted = [predictor(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, one in zip(pool.map(predictor, parts), wanted, strict=True):
                equal(found, one)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"user_id": ["a", "b"]},
            r"column 'user_id' of the input holds strings, and the model was trained on integers",
        ),
        ({"tags": [[1, 2]]}, r"column 'tags' of the input holds integers, and the model was trained on strings"),
        ({"user_id": [1.5, 2.5]}, r"column 'user_id' of the input: holds double"),
        ({"user_id": [1, 100]}, r"feature 'user_id', column 'user_id'.*ids outside table 'user' of 100 rows"),
        ({"user_id": [1, -1]}, r"column 'user_id'.*ids outside table"),
        ({"watched": [3, 4]}, r"sequence 'watched', column 'watched'.*wanted: lists"),
        ({"age": ["old"]}, r"dense feature 'age', column 'age'.*numbers"),
        ({"age": [float("inf")]}, r"dense feature 'age'.*infinite values"),
        ({"user_id": [1, "a"]}, r"column 'user_id' of the input cannot be read"),
        ({"user_id": [2**70]}, r"column 'user_id' of the input cannot be read"),
        ({"user_id": 3}, r"column 'user_id' of the input must be a list of values"),
        ({"user_id": "123"}, r"column 'user_id' of the input must be a list of values"),
        ({"user_id": [1], "age": [1, 2]}, r"different lengths: user_id 1, age 2"),
        ({"user_ids": [1]}, r"nothing reads a column 'user_ids'. Did you mean 'user_id'"),
        ({"user_id": {0: 50, 1: 60}}, r"column 'user_id' of the input must be a list of values"),
        ({"user_id": {50, 60}}, r"column 'user_id' of the input must be a list of values"),
        (pa.table([pa.array([1]), pa.array([2])], ["user_id", "user_id"]), "has several columns 'user_id'"),
        ([1, 2], r"must be a mapping of columns, a pandas DataFrame, or an Arrow table \(found list\)"),
    ],
)
def test_bad_input_is_named_by_column(predictor: Predictor, columns: object, message: str):
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            predictor(columns)


def test_other_columns_are_left_alone_unless_asked(predictor: Predictor, table: pa.Table):
    assert "click" in table.column_names
    with pytest.raises(ValueError, match=r"the input: nothing reads a column '\w+'\. (Known|Did you mean)"):
        predictor(table, strict=True)


@pytest.mark.parametrize(
    ("user", "candidates", "context", "message"),
    [
        ({"item_id": 1}, {"item_id": [1]}, None, "user: nothing reads a column 'item_id'. It is not of the user"),
        ({}, {"user_id": [1]}, None, "candidates: nothing reads a column 'user_id'. It is of the user"),
        ({"usr_id": 1}, {"item_id": [1]}, None, "Did you mean 'user_id'"),
        ({}, {"item_id": [1]}, {"item_id": 2}, "given for each of the candidates, and in context"),
        (None, {"item_id": [1]}, None, r"user must be a mapping of columns to values \(found NoneType\)"),
        ({"user_id": [1.5]}, {"item_id": [1]}, None, "column 'user_id' of user: holds list<item: double>"),
    ],
)
def test_columns_are_given_where_they_belong(predictor: Predictor, user, candidates, context, message: str):
    with pytest.raises(ValueError, match=message):
        predictor.score(user, candidates, context)


def test_bad_ids_as_the_caller_wants(bundle: Path, table: pa.Table):
    tolerant = Predictor.load(bundle, bad_ids="drop")
    bad = table.set_column(table.column_names.index("user_id"), "user_id", pa.array([10**6] * 300))
    equal(tolerant(bad), tolerant(table.drop_columns(["user_id"])))


def test_a_head_that_does_not_retrieve_has_no_vectors(predictor: Predictor):
    with pytest.raises(ValueError, match="the head htlnet retrieves nothing"):
        predictor.query_vectors({"user_id": [1]})


def without(packages: str, rest: str) -> str:
    """Run Python in a process that cannot import these packages; return what it prints."""
    script = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages.split()!r}:
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
{rest}
"""
    words = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_needs_no_torchrec(bundle: Path, run: Path):
    rows = run.parent / "rows.parquet"
    printed = without(
        "torchrec torchx torchjd fbgemm_gpu",
        "from torchrec_mtl.serving.predictor import Predictor\n"
        "import pyarrow.parquet as pq\n"
        f"print(Predictor.load({str(bundle)!r})(pq.read_table({str(rows)!r}))['click'].sum())",
    )
    assert float(printed) > 0


def test_the_command_needs_no_torchrec_for_quantised_tables(run: Path, tmp_path: Path):
    export_run(run, tmp_path / "q", Options(quantise=8, max_loss=1.0, rows=50))
    words = ["x", "predict", tmp_path / "q", "--data", run.parent / "rows.parquet", "--out", tmp_path / "out.parquet"]
    printed = without(
        "torchrec torchx torchjd",
        f"sys.argv = {[str(w) for w in words]!r}\nfrom torchrec_mtl.cli import main\nmain()",
    )
    assert printed.startswith("300 rows written to ")
