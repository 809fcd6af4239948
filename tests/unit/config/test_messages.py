"""Each kind of mistake within a section: one message, and its exact words."""

import copy
import random

import pytest

from torchrec_mtl.config.load import ConfigError, parse
from torchrec_mtl.registry import BUILT_IN

HEADS = ", ".join(sorted(BUILT_IN["head"]))
UNKNOWN = {
    "train.epochz=2": "train.epochz: unknown key. Did you mean 'epochs'?",
    "train.Epochs=2": "train.Epochs: unknown key. Did you mean 'epochs'?",
    "data.batchsize=8": "data.batchsize: unknown key. Did you mean 'batch_size'?",
    "train.monitor.mod=max": "train.monitor.mod: unknown key. Did you mean 'mode'?",
    "features.tables.0.row=3": "features.tables.0.row: unknown key. Did you mean 'rows'?",
    "features.sparse.0.tabel=x": "features.sparse.0.tabel: unknown key. Did you mean 'table'?",
    "features.dense.2.normalise=no": "features.dense.2.normalise: unknown key. Did you mean 'normalize'?",
    "tasks.0.lable=x": "tasks.0.lable: unknown key. Did you mean 'label'?",
    "head.towr=[8]": "head.towr: unknown key. Did you mean 'tower'?",
    "tasks.2.loss.minium=0": "tasks.2.loss.minium: unknown key. Did you mean 'minimum'?",
    "train.batch_size=8": "train.batch_size: unknown key. Did you mean data.batch_size?",
    "optim.lr=0.1": "optim.lr: unknown key. Did you mean optim.sparse.lr or optim.dense.lr?",
    "epochs=3": "epochs: unknown section. Did you mean train.epochs?",
    "trian.epochs=2": "trian: unknown section. Did you mean 'train'?",
    "optim.schedule.xyz=1": "optim.schedule.xyz: unknown key. Known: end, every, factor, type, warmup.",
    "features.columns=[]": "features.columns: unknown key. Known: dense, sequences, sparse, tables.",
    "train={no: 3}": "train: the key false is no text; put it in quotes",
}
TYPES = {
    "data.batch_size=many": "data.batch_size: expected a whole number (found 'many')",
    "train.epochs=1.5": "train.epochs: expected a whole number (found 1.5)",
    "train.epochs=0": "train.epochs: expected a number above 0 (found 0)",
    "train.seed=-1": "train.seed: expected a number of at least 0 (found -1)",
    "train.keep=yes": "train.keep: expected a number (found true)",
    "optim.dense.lr=fast": "optim.dense.lr: expected a number (found 'fast')",
    "optim.dense.lr=.inf": "optim.dense.lr: expected a finite number (found .inf)",
    "optim.schedule.warmup=2": "optim.schedule.warmup: expected a number of at most 1 (found 2)",
    "tasks.0.loss={type: focal, alpha: 1}": "tasks.0.loss.alpha: expected a number below 1 (found 1)",
    "data.shuffle=maybe": "data.shuffle: expected true or false (found 'maybe')",
    "train.epochs=": "train.epochs: empty; give a value or remove the key",
    "features.tables.0.rows=": "features.tables.0.rows: empty; give a value",
    "train=5": "train: expected a mapping, such as {epochs: ..., max_steps: ...} (found 5)",
    "train.monitor=loss": "train.monitor: expected a mapping, such as {metric: ..., mode: ...} (found 'loss')",
    "data=[]": "data: expected a mapping, such as {train: ...} (found [])",
    "features.sparse.2=tags": "features.sparse.2: expected a mapping, such as {name: ..., table: ...} (found 'tags')",
    "features.dense.0=3": "features.dense.0: expected a mapping, such as {name: ...} (found 3)",
    "features.dense=age": "features.dense: expected a list, such as [age] (found 'age')",
    "features.dense={age: log1p}": "features.dense: expected a list, such as [{name: ...}] (found {age: log1p})",
    "data.keys=user_id": "data.keys: expected a list, such as [user_id] (found 'user_id')",
    "data.keys={a: 1}": "data.keys: expected a list (found {a: 1})",
    "data.train=[]": "data.train: expected a list of at least 1 (found [])",
    "data.train=''": "data.train.0: expected text that is not empty (found '')",
    "run_dir=[a]": "run_dir: expected the path of a folder (found [a])",
    "bottom=[concat]": "bottom: expected a name, or a mapping such as {type: concat} (found [concat])",
    "tasks={click: {kind: binary}}": "tasks: expected a list, such as [{name: ...}] (found {click: {kind: binary}})",
    "train.device=gpu": "train.device: expected auto, cpu or cuda, found 'gpu'. Did you mean 'cpu'?",
    "train.pipeline=3": "train.pipeline: expected auto, base, sparse_dist or prefetch_sparse_dist, found 3.",
    "tasks.2.kind=regresion": (
        "tasks.2.kind: expected binary or regression, found 'regresion'. Did you mean 'regression'?"
    ),
    "features.tables.1.sharding=[data_parallel]": (
        "features.tables.1.sharding.0: expected table_wise, column_wise, table_column_wise, row_wise, table_row_wise "
        "or grid_shard, found 'data_parallel'."
    ),
}
NAMES = {
    "features.sparse.2.name=no": (
        "features.sparse.2.name: expected text, but YAML reads an unquoted no, off, or false as a boolean; "
        "put it in quotes (found false)"
    ),
    "data.keys=[user_id, on]": (
        "data.keys: expected text, but YAML reads an unquoted yes, on, or true as a boolean; "
        "put it in quotes (found [user_id, true])"
    ),
    "tasks.0.label=3": ("tasks.0.label: expected text, but YAML reads this as a number; put it in quotes (found 3)"),
    "tasks.0.name=2024-01-01": (
        "tasks.0.name: expected text, but YAML reads this as a date; put it in quotes (found 2024-01-01)"
    ),
    "tasks.0.name=[a]": "tasks.0.name: expected text (found [a])",
    "features.sparse.2.name='a/b c'": (
        "features.sparse.2.name: 'a/b c' holds a blank and '/', reserved in names; rename it"
    ),
}
PLUGINS = {
    "head=htlnt": "head: unknown head 'htlnt'. Did you mean 'htlnet'?",
    "head=xyz": f"head: unknown head 'xyz'. Known: {HEADS}.",
    "gradient.type=summ": "gradient: unknown rule 'summ'. Did you mean 'sum'?",
    "tasks.0.loss=bcee": "tasks.0.loss: unknown loss 'bcee'. Did you mean 'bce'?",
    "head={tower: [8]}": f"head.type: missing; give one of {HEADS}, or package.module:Class",
    "head={typ: htlnet}": "head.typ: unknown key. Did you mean 'type'?",
    "head={type: on}": f"head.type: expected a name (found true); give one of {HEADS}, or package.module:Class",
    "head=absent.pkg:Mine": (
        "head: cannot import head 'absent.pkg:Mine': No module named 'absent'; install it, "
        "or put its folder on PYTHONPATH"
    ),
    "head=absent.pkg.Mine": "head: unknown head 'absent.pkg.Mine'. A class of yours is written package.module:Class.",
    "head=torchrec_mtl.heads.htlnet:HTLNt": (
        "head: 'torchrec_mtl.heads.htlnet' has no head 'HTLNt'. Did you mean 'HTLNet'?"
    ),
    "head=torchrec_mtl.losses.binary:Focal": (
        "head: 'torchrec_mtl.losses.binary:Focal' is no head: it has no attribute 'phases'; "
        "see the base class of its kind"
    ),
    "head=torchrec_mtl.heads.base:Term": (
        "head: 'torchrec_mtl.heads.base:Term' is no head: it must be a class with a nested Config that derives from "
        "PluginConfig"
    ),
    "head=torchrec_mtl..x:Y": "head: 'torchrec_mtl..x:Y' names no head; write package.module:Class",
    "gradient=htlnet": "gradient.core: missing. The regression task on which the rule is registered.",
}
MISSING = {
    "data": "data: missing; every run needs it, with a 'train'",
    "features": "features: missing; every run needs it, with tables, sparse, sequences, dense",
    "tasks": (
        "tasks: missing; every run needs one task or more, in causal order: - {name: ..., kind: ..., label: ...}"
    ),
    "head": f"head: missing; every run needs it, by name: {HEADS}",
    "run_dir": "run_dir: missing; name the folder for everything the run writes, such as runs/first",
    "data.train": "data.train: missing. File, folder, or glob, or a list of them; local, or any URI that pyarrow "
    "opens (s3://, gs://, hdfs://).",
    "features.tables.0.dim": "features.tables.0.dim: missing. Width of a row; a multiple of 4.",
    "features.sparse.0.table": "features.sparse.0.table: missing. Name of the table that holds its embeddings; "
    "several features may share one.",
    "tasks.0.kind": "tasks.0.kind: missing. binary: a probability; regression: a number.",
}


@pytest.mark.parametrize(("override", "message"), {**TYPES, **NAMES, **PLUGINS}.items())
def test_a_mistake_gets_one_message(problems, override, message):
    assert problems(override) == [message]


@pytest.mark.parametrize(("override", "message"), UNKNOWN.items())
def test_an_unknown_key_is_answered_with_the_nearest_or_its_section(problems, override, message):
    assert problems(override) == [message]


@pytest.mark.parametrize(("path", "message"), MISSING.items())
def test_what_is_missing_is_named_with_what_it_is(raw, problems, path, message):
    node = raw
    *parents, last = path.split(".")
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node[key]
    del node[last]
    assert problems() == [message]


@pytest.mark.parametrize(
    ("path", "wrong", "right"), [("tasks.0", "lable", "label"), ("features.tables.0", "row", "rows")]
)
def test_a_misspelt_required_key_is_not_also_missing(raw, problems, path, wrong, right):
    section, *rest = path.split(".")
    entry = raw[section][int(rest[0])] if len(rest) == 1 else raw[section][rest[0]][int(rest[1])]
    entry[wrong] = entry.pop(right)
    assert problems() == [f"{path}.{wrong}: unknown key. Did you mean '{right}'?"]


@pytest.mark.parametrize(("section", "wrong"), [("features", "featurs"), ("tasks", "task"), ("head", "heads")])
def test_a_misspelt_section_is_not_also_missing(raw, problems, section, wrong):
    raw[wrong] = raw.pop(section)
    assert problems() == [f"{wrong}: unknown section. Did you mean '{section}'?"]


def test_all_mistakes_are_reported_at_once(problems):
    found = problems(
        "head=htlnt", "head.towr=[8]", "train.epochs=0", "tasks.1.kind=binry", "features.sparse.0.side=usr",
        "data.batch_size=100", "features.dense.0=click", "features.tables.0.rows=x", "optim.sparse.type=adam",
        "train.device=cpu",
    )  # fmt: skip
    assert found == [
        "features.tables.0.rows: expected a whole number (found 'x')",
        "features.sparse.0.side: expected user, item or context, found 'usr'. Did you mean 'user'?",
        "tasks.1.kind: expected binary or regression, found 'binry'. Did you mean 'binary'?",
        "head: unknown head 'htlnt'. Did you mean 'htlnet'?",
        "head.towr: unknown key. Did you mean 'tower'?",
        "train.epochs: expected a number above 0 (found 0)",
        "data.batch_size: 100 is not a multiple of data.streams = 8; take 96, or data.streams = 5",
        "features.dense.0: reads column 'click', the label of task 'click', unknown when predicting; remove it",
        "optim.sparse.type: FBGEMM has no fused adam on CPU; use rowwise_adagrad, adagrad, or sgd, "
        "or set train.device to cuda for a machine with one",
    ]


def test_a_wrong_loss_hides_nothing_of_its_task(problems):
    found = problems("tasks.0.loss=bcee", "tasks.0.weight=-1", "tasks.0.space=long_view")
    assert [p.partition(":")[0] for p in found] == ["tasks.0.loss", "tasks.0.weight", "tasks.0.space"]


@pytest.mark.parametrize("override", ["train=", "optim=", "gradient=", "bottom=", "optim.sparse=", "features.dense="])
def test_an_empty_section_means_its_defaults(problems, override):
    assert problems(override) == []


@pytest.mark.parametrize("override", ["optim.dense.lr=1e-3", "optim.dense.lr='1e-3'", "features.tables.0.rows=1e6"])
def test_numbers_may_be_written_with_an_exponent(problems, override):
    assert problems(override) == []


JUNK = [None, True, -1, 1.5, "", "x", "click", "htlnet", [], {}, [None], [{}], {"a": 1}, {1: 2}, {"type": None}, 10**30]
JARGON = ("Input should", "Value error", "pydantic", "<class", "NoneType", "None", "True", "False")


def test_whatever_is_broken_the_answer_is_a_list_of_problems_in_plain_words(raw):
    raw |= {"gradient": {"type": "htlnet", "core": "watch_time"}, "optim": {"sparse": {"lr": 1}}}
    rng = random.Random(0)
    for _ in range(300):
        broken = copy.deepcopy(raw)
        for _ in range(rng.randint(1, 3)):
            _break(broken, rng)
        try:
            parse(broken)
        except ConfigError as error:
            said = [p for p in error.problems if any(word in p for word in JARGON)]
            assert said == []


def _break(node, rng):
    """Replace, remove, or rename something at a random place."""
    while True:
        key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        if not isinstance(node[key], (dict, list)) or not node[key] or rng.random() < 0.2:
            break
        node = node[key]
    choice = rng.random()
    if choice < 0.7:
        node[key] = copy.deepcopy(rng.choice(JUNK))
    elif choice < 0.85 and isinstance(node, dict):
        node[rng.choice([f"{key}s", 3, None])] = node.pop(key)
    elif len(node) > 1:
        node.pop(key)
