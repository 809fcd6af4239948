"""Checks between sections: each message, and what must not be refused."""

import sys
import types

import pyarrow.parquet as pq
import pytest

from torchrec_mtl.bottoms.concat import Concat
from torchrec_mtl.config.checks import notes
from torchrec_mtl.config.checks_device import for_the_cpu
from torchrec_mtl.config.checks_tasks import METRICS
from torchrec_mtl.config.load import parse
from torchrec_mtl.config.overrides import apply_overrides
from torchrec_mtl.data.files import open_files
from torchrec_mtl.data.preflight import check_schema
from torchrec_mtl.data.synthetic import make_table
from torchrec_mtl.heads.shared_bottom import SharedBottom
from torchrec_mtl.training.metrics import task_metrics

RULE = "gradient={type: htlnet, core: watch_time}"
ONE_TASK = "tasks=[{name: watch_time, kind: regression, label: watch_time}]"
NO_EVAL = "nothing is evaluated during training without data.eval; name its files there"
NOT_ON_CPU = "or set train.device to cuda for a machine with one"


class PerTask(Concat):
    """One representation a task."""

    per_task = True


class Reader(SharedBottom):
    """Reads past the representation."""

    reads_features = True


PLUGINS = "tests_of_checks"


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """PerTask and Reader as plug-ins of another package."""
    module = types.ModuleType(PLUGINS)
    module.PerTask, module.Reader = PerTask, Reader
    monkeypatch.setitem(sys.modules, PLUGINS, module)


FEATURES = {
    "features.dense.0=watch_time": (
        "features.dense.0: reads column 'watch_time', the label of task 'watch_time', unknown when predicting; "
        "remove it"
    ),
    "features.dense.0={name: w, column: click}": (
        "features.dense.0: reads column 'click', the label of task 'click', unknown when predicting; remove it"
    ),
    "data.outcomes=[tags]": (
        "features.sparse.2: reads column 'tags', declared in data.outcomes, unknown when predicting; remove it"
    ),
    "features.sparse.0.table=usr": "features.sparse.0.table: 'usr' is not in features.tables. Did you mean 'user'?",
    "features.sparse.0.table=xyz": (
        "features.sparse.0.table: 'xyz' is not in features.tables. Known: item, tag, user.",
        "features.tables.0: no feature reads table 'user'; remove it, or name it in a feature",
    ),
    "features.tables.0.dim=10": "features.tables.0.dim: FBGEMM wants a multiple of 4; found 10, take 12",
    "features.sequences=[{name: a, table: item, max_length: 3}, {name: b, table: tag, max_length: 3}]": (),
    "features.sequences.0.target=itemid": (
        "features.sequences.0.target: no sparse feature is called 'itemid'. Did you mean 'item_id'?"
    ),
    "features.sequences.0.times=seen_at": (
        "features.sequences.0.now: missing; 'times' ('seen_at') are compared with the row's own moment, name its "
        "column here"
    ),
    "features.sequences.0.now=shown_at": (
        "features.sequences.0.times: missing; 'now' ('shown_at') is compared with the moments of the ids, name their "
        "column here, or remove 'now'"
    ),
    "features.sequences.0.time_unit=ms": (
        "features.sequences.0.time_unit: 'ms' of no columns; name these in 'times' and 'now'"
    ),
    "features.sequences.0.time_unit=sec": (
        "features.sequences.0.time_unit: expected ns, us, ms, s, min, h or d, found 'sec'.",
    ),
    "features.sequences=[{name: a, table: item, max_length: 3, times: watch_time, now: click}]": (
        "features.sequences.0.times: reads column 'watch_time', the label of task 'watch_time', unknown when "
        "predicting; remove it",
        "features.sequences.0.now: reads column 'click', the label of task 'click', unknown when predicting; remove it",
    ),
    "features.sparse.0.name=tags": "features: two features are called 'tags'; rename one and give it a 'column'",
    "features.tables.2.name=user": (
        "features.sparse.2.table: 'tag' is not in features.tables. Known: item, user.",
        "features.tables: two tables are called 'user'; rename one",
    ),
    "features={}": "features: no features; list some under sparse, sequences, or dense",
    "features={sparse: [{name: a, table: t}]}": (
        "features.sparse.0.table: 't' is not in features.tables. There are no tables; list them there."
    ),
}
TASKS = {
    "tasks.0.space=long_view": (
        "tasks.0.space: 'click' is defined inside 'long_view', the label of 'long_view', which comes after it; "
        "list tasks in causal order"
    ),
    "tasks.0.space=click": "tasks.0.space: 'click' is the task's own label, which would always be 1; remove it",
    "tasks.1.space=watch_time": (
        "tasks.1.space: 'watch_time' is the label of a regression; a space is a column of 0 and 1"
    ),
    "tasks.1.name=click": "tasks: two tasks are called 'click'; rename one",
    "tasks.0.loss=mse": "tasks.0.loss: 'mse' is a loss of regression tasks, but 'click' is binary; use bce",
    "tasks.2.loss={type: focal}": (
        "tasks.2.loss: 'focal' is a loss of binary tasks, but 'watch_time' is regression; use mse"
    ),
    "tasks=[{name: click, kind: binary, label: click, weight: 0}]": (
        "tasks: the weight of every task is 0, so that nothing is trained; give one a positive weight"
    ),
}
GATES = {
    "tasks.2.gate=clik": "tasks.2.gate: no task is called 'clik'. Did you mean 'click'?",
    "tasks.2.gate=xyz": "tasks.2.gate: no task is called 'xyz'. Known: click, long_view, watch_time.",
    "tasks.2.gate=watch_time": "tasks.2.gate: 'watch_time' is a regression; name a binary task",
    "tasks.1.gate=click": (
        "tasks.1.gate: 'long_view' is a binary task; a gate says whether a number is above 0. Remove it"
    ),
    "tasks.0={name: spend, kind: regression, label: spend, gate: long_view}": (
        "tasks.0.gate: 'long_view' must come before 'spend'; list tasks in causal order"
    ),
    "tasks.2={name: watch_time, kind: regression, label: watch_time, space: click, gate: long_view}": (
        "tasks.2.gate: 'long_view' and 'watch_time' are defined on other rows (space: None and click), so that "
        "P(gate) E[y | y > 0] is no mean of 'watch_time'; give both the same space"
    ),
    "tasks.1={name: long_view, kind: binary, label: long_view, space: click, gate: click}": (
        "tasks.1.gate: 'long_view' is a binary task; a gate says whether a number is above 0. Remove it"
    ),
}
ORDERS = {
    "tasks.1.order.below=clik": "tasks.1.order.below: no task is called 'clik'. Did you mean 'click'?",
    "tasks.1.order.below=watch_time": "tasks.1.order.below: 'watch_time' is a regression; name a binary task",
    "tasks.0.order.below=long_view": (
        "tasks.0.order.below: 'long_view' must come before 'click'; list tasks in causal order"
    ),
    "tasks.1.order.below=long_view": (
        "tasks.1.order.below: 'long_view' must come before 'long_view'; list tasks in causal order"
    ),
    "tasks.2.order.below=click": (
        "tasks.2.order: 'watch_time' is a regression; only probabilities can be ordered. Remove it"
    ),
    "tasks.1.order={below: click, weight: 0}": "tasks.1.order.weight: expected a number above 0 (found 0)",
    "tasks.1.order={}": "tasks.1.order.below: missing. Earlier binary task that holds wherever this one does.",
}
TRAINING = {
    "data.batch_size=100": "data.batch_size: 100 is not a multiple of data.streams = 8; take 96, or data.streams = 5",
    "data.eval_batch_size=4": (
        "data.eval_batch_size: 4 is not a multiple of data.streams = 8; take 8, or data.streams = 4"
    ),
    "train.monitor.patience=3": f"train.monitor.patience: {NO_EVAL}",
    "train={eval_every: 5, monitor: {metric: click/auc}}": f"train.monitor.metric, train.eval_every: {NO_EVAL}",
}
METRIC = {
    "clik/auc": "no task is called 'clik'. Did you mean 'click'?",
    "click/acu": "a binary task has no metric 'acu'. Did you mean 'auc'?",
    "watch_time/auc": (
        "a regression task has no metric 'auc'. Known: calibration, gini, loss, mae, nmae, nrmse, rmse, spearman."
    ),
    "auc": "expected loss, or task/metric such as click/auc (found 'auc')",
    "click/gauc": "gauc needs groups; name their column in data.group",
}
RULES = {
    (RULE, ONE_TASK): "gradient: 'htlnet' wants two tasks or more, and there is one; use gradient: {type: sum}",
    (RULE, "tasks.0.weight=0", "tasks.1.weight=0"): (
        "gradient: 'htlnet' wants two tasks or more, and only 'watch_time' has a weight above 0; "
        "use gradient: {type: sum}"
    ),
    (RULE, "tasks.2.weight=0"): (
        "gradient.core: 'watch_time' has weight 0, so that there is no gradient to compare with; give it a weight"
    ),
    (RULE, "gradient.core=watchtime"): "gradient.core: no task 'watchtime'. Did you mean 'watch_time'?",
    (RULE, "head=single_task"): (
        "gradient: 'htlnet' cannot act under head 'single_task', whose tables belong to one task each, so that "
        "gradients never meet; use gradient: {type: sum}"
    ),
    (RULE, "features={dense: [age]}"): (
        "gradient: 'htlnet' acts at the embeddings, and no feature has one; use gradient: {type: sum}"
    ),
    ("gradient={type: sum, at: representation}",): (
        "gradient.at: 'sum' has no boundary to put anywhere; remove this key"
    ),
    (RULE, "gradient.at=representation", f"bottom={PLUGINS}:PerTask"): (
        f"gradient.at: bottom '{PLUGINS}:PerTask' makes one representation a task, where gradients never meet; "
        "use at: embeddings"
    ),
    (RULE, "gradient.at=representation", f"head={PLUGINS}:Reader"): (
        f"gradient.at: head '{PLUGINS}:Reader' reads features past the representation; use at: embeddings"
    ),
    (RULE, "gradient.exact=row"): (
        "gradient.exact: expected boundary, rows or dense, found 'row'. Did you mean 'rows'?"
    ),
    **{
        (f"gradient={{type: {rule}, exact: rows}}",): (
            f"gradient.exact: '{rule}' looks at no gradients; remove this key"
        )
        for rule in ("sum", "uncertainty", "dwa", "famo")
    },
    **{
        (RULE, "gradient.at=representation", f"gradient.exact={exact}"): (
            f"gradient.exact: '{exact}' is about rows of tables, which at: representation never sees; remove one"
        )
        for exact in ("rows", "dense")
    },
}
FINE = [
    (RULE,),
    (RULE, "gradient.exact=rows"),
    (RULE, "gradient.exact=dense"),
    (RULE, "gradient={type: htlnet, core: watch_time, ema: 0.9}"),
    ("gradient={type: metabalance, core: watch_time, exact: rows}",),
    ("tasks.2.gate=click",),
    ("tasks.2.gate=long_view", "tasks.2.loss=lognormal", "tasks.1.order.below=click"),
    ("tasks.1.space=in_sample", "tasks.2.space=in_sample", "tasks.2.gate=long_view"),
    ("tasks.1.space=click", "tasks.1.order={below: click, weight: 2}"),  # an order holds where both are defined
    (RULE, "gradient.at=representation"),
    ("head=single_task",),
    ("data.group=user_id", "data.keys=[user_id, item_id]"),  # grouped by what is also an input
    ("tasks.1.space=click", "tasks.2.space=in_sample"),
    ("features.dense.0=in_sample", "tasks.2.space=in_sample"),  # a space may be known beforehand
    ("data.eval=e.parquet", "train.monitor={metric: watch_time/gini, patience: 2}"),
    ("data.eval=e.parquet", "data.group=user_id", "train.monitor.metric=click/gauc"),
    ("optim.sparse.type=adam", "train.device=cuda", "features.tables.0.sharding=[row_wise]"),
    ("features.tables.0.sharding=[row_wise, table_wise]", "train.device=cpu"),
    ("features.sequences.0.times=seen_at", "features.sequences.0.now=hour", "features.sequences.0.time_unit=min"),
]


@pytest.mark.parametrize(("override", "expected"), {**FEATURES, **TASKS, **GATES, **ORDERS, **TRAINING}.items())
def test_sections_are_checked_against_each_other(problems, override, expected):
    expected = [expected] if isinstance(expected, str) else list(expected)
    assert sorted(problems(override)) == sorted(expected)


@pytest.mark.parametrize(("metric", "message"), METRIC.items())
def test_the_monitored_metric_must_exist(problems, metric, message):
    found = problems("data.eval=e.parquet", f"train.monitor.metric={metric}")
    assert found == [f"train.monitor.metric: {message}"]


TIES = {
    ("tasks.2.gate=click", "tasks.0.weight=0"): (
        "tasks.2.gate: 'click' has weight 0 and would never be trained; give it a weight"
    ),
    ("tasks.1.order.below=click", "tasks.0.weight=0"): (
        "tasks.1.order.below: 'click' has weight 0 and would never be trained; give it a weight"
    ),
    ("tasks.2.gate=click", "tasks.2.loss=zero_inflated_lognormal"): (
        "tasks.2.gate: loss 'zero_inflated_lognormal' models zeros itself, and the gate leaves it none; use "
        "lognormal, or drop gate"
    ),
}


@pytest.mark.parametrize(("overrides", "message"), TIES.items())
def test_a_tie_between_tasks_must_be_able_to_hold(problems, overrides, message):
    assert problems(*overrides) == [message]


@pytest.mark.parametrize(("overrides", "message"), RULES.items())
def test_a_rule_must_be_able_to_act(problems, overrides, message):
    assert problems(*overrides) == [message]


@pytest.mark.parametrize("overrides", FINE)
def test_what_makes_sense_is_not_refused(problems, overrides):
    assert problems(*overrides) == []


def test_tables_of_sequences_have_one_dim(problems):
    found = problems(
        "features.tables.2.dim=16",
        "features.sequences=[{name: a, table: item, max_length: 3}, {name: b, table: tag, max_length: 3}]",
    )
    assert found == [
        "features.tables: tables that sequences read live in one EmbeddingCollection, all of one dim; "
        "found item 8, tag 16; give them the same"
    ]


def test_a_table_may_not_have_a_name_that_torch_refuses(problems):
    found = problems("features.tables.0.name=items", "features.sparse.0.table=items")
    assert found == ["features.tables.0.name: torch keeps the name 'items' to itself; take another, as 'items_table'"]


def test_what_the_cpu_lacks_is_refused_on_cpu(problems):
    found = problems("train.device=cpu", "optim.sparse.type=adam", "features.tables.0.sharding=[row_wise]")
    assert found == [
        f"optim.sparse.type: FBGEMM has no fused adam on CPU; use rowwise_adagrad, adagrad, or sgd, {NOT_ON_CPU}",
        f"features.tables.0.sharding: TorchRec has no row_wise on CPU; add table_wise, {NOT_ON_CPU}",
    ]


def test_what_torchrec_lacks_for_tables_of_sequences_is_refused(problems):
    history = "features.sequences=[{name: seen, table: user, side: user, max_length: 5}]"
    found = problems("train.device=cuda", history, "features.tables.0.sharding=[table_row_wise, table_column_wise]")
    assert found[0] == (
        "features.tables.0.sharding: TorchRec has no table_row_wise or table_column_wise for tables that sequences "
        "read; add one of column_wise, row_wise, table_wise"
    )


def test_the_head_is_asked_about_the_tasks(problems):
    (found,) = problems("head=htlnet", "tasks.0.kind=regression", "tasks.0.loss=mse")
    assert found.startswith("head: htlnet passes labels of binary tasks down")


def test_towers_want_features_of_both_sides(problems):
    sparse = "[{name: item, table: item, side: item}, {name: tag, table: tag}, {name: user, table: user}]"
    bare = (f"features.sparse={sparse}", "features.sequences=[]")
    (found,) = problems("head=dmmp", "tasks=[{name: click, kind: binary, label: click}]", *bare, "features.dense=[]")
    assert found == (
        "head: 'dmmp' has a tower of the user's features, and no feature has side: user (found item (item), "
        "tag (context), user (context)); give features their sides, such as {name: user, table: user, side: user}"
    )


RETRIEVAL = "retrieval={items: items.parquet, item: item_id, query: user_id, negatives: {%s}}"
SOFTMAX = "head={type: dmmp, in_batch_weight: 1}"
NEGATIVES = {
    (SOFTMAX, "uniform: 12"): "retrieval.negatives.uniform: 12 is not a multiple of data.streams = 8; take 16",
    (SOFTMAX, "hard: 8"): (
        "retrieval.negatives: hard negatives are drawn from what a search found; name its output in found"
    ),
    (SOFTMAX, "uniform: 8, found: a.parquet"): (
        "retrieval.negatives: found: without effect while hard is 0; give hard, or remove it"
    ),
    (SOFTMAX, ""): "retrieval.negatives: draws nothing; give uniform, popular, or hard, or remove this section",
    ("head=dmmp", "uniform: 8"): (
        "retrieval.negatives: head 'dmmp' has no softmax over the items of a batch as it is set; give dmmp an "
        "in_batch_weight, or remove this section"
    ),
}


@pytest.mark.parametrize(("given", "message"), NEGATIVES.items())
def test_items_can_be_drawn_or_it_is_said_why_not(problems, given, message):
    head, negatives = given
    one_task = "tasks=[{name: click, kind: binary, label: click}]"
    assert problems(head, one_task, RETRIEVAL % negatives) == [message]


def test_items_are_drawn_where_a_softmax_takes_them(problems):
    one_task = "tasks=[{name: click, kind: binary, label: click}]"
    assert problems(SOFTMAX, one_task, RETRIEVAL % "uniform: 8, hard: 16, found: [a.parquet]") == []


def test_a_head_with_losses_of_its_own_trains_without_those_of_the_tasks(problems):
    tasks = "tasks=[{name: click, kind: binary, label: click, weight: 0}]"
    assert problems("head=dmmp", tasks) == []
    alone = "head={type: dmmp, teacher: none, fuse_weight: 0, gate: even}"
    assert problems(alone, tasks) == [TASKS["tasks=[{name: click, kind: binary, label: click, weight: 0}]"]]


def test_a_table_whose_reader_is_unreadable_is_not_called_unread(problems):
    assert problems("features.sparse.0.table=3") == [
        "features.sparse.0.table: expected text, but YAML reads this as a number; put it in quotes (found 3)"
    ]


TWICE = "data.eval: reads train.parquet like data.train; its metrics will flatter the model"


@pytest.mark.parametrize(
    ("override", "expected"), [("data.eval=train.parquet", [TWICE]), ("data.test=[a.parquet, b.parquet]", [])]
)
def test_notes_tell_of_data_that_serves_twice(raw, override, expected, problems):
    assert problems(override) == []
    assert notes(parse(raw)) == expected


def test_a_space_that_names_no_column_is_found_in_the_files(raw, tmp_path):
    path = tmp_path / "train.parquet"
    pq.write_table(make_table(8, seed=0), path)
    raw["data"]["train"], raw["tasks"][2]["space"] = str(path), "clik"
    (found,) = check_schema(open_files([str(path)]), parse(raw))
    assert found == f"space of task 'watch_time', column 'clik': not in {path}. Did you mean 'click'?"


@pytest.mark.parametrize("kind", sorted(METRICS))
def test_known_metrics_are_those_that_are_computed(kind):
    computed = task_metrics(kind, [0.0, 1.0], [0.2, 0.6], [1.0, 1.0], ["a", "a"])
    assert {*computed, "loss"} - {"count"} == set(METRICS[kind])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optim.sparse.weight_decay=0.1",), f"FBGEMM ignores it on CPU; set it to 0, {NOT_ON_CPU}"),
        (
            ("optim.sparse={type: sgd, weight_decay: 0.1}",),
            "FBGEMM's sgd ignores it; set it to 0, or take another type on CUDA",
        ),
    ],
)
def test_a_weight_decay_that_fbgemm_ignores_is_refused(problems, overrides, message):
    assert problems("train.device=cpu", *overrides) == [f"optim.sparse.weight_decay: {message}"]


def test_auto_is_the_cpu_where_fbgemm_is_the_cpu_build(monkeypatch):
    import torch

    from torchrec_mtl import device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "installed_versions", lambda: {"fbgemm-gpu-cpu": "1.8.0"})
    assert not device.has_cuda()
    monkeypatch.setattr(device, "installed_versions", lambda: {"fbgemm-gpu": "1.8.0"})
    assert device.has_cuda()


def test_placement_on_a_gpu_is_refused_on_the_cpu(problems):
    found = problems(
        "train.device=cpu",
        "train.pipeline=prefetch_sparse_dist",
        "train.comms=bf16",
        "features.tables.0.kernel=fused_uvm_caching",
        "features.tables.1.cache_load_factor=0.1",
        "features.tables.2.dtype=fp16",
        "train.precision=bf16",
    )
    assert found == [
        f"features.tables.0.kernel: fused_uvm_caching is of GPUs, and on CPU all memory is the host's; "
        f"remove it, {NOT_ON_CPU}",
        f"features.tables.1.cache_load_factor: on CPU there is no cache; remove it, {NOT_ON_CPU}",
        f"train.pipeline: prefetch_sparse_dist fills a GPU's cache; use auto, {NOT_ON_CPU}",
        f"train.comms: gloo, which ranks on CPU talk by, has no bf16; use fp16, {NOT_ON_CPU}",
    ]


def test_placement_on_a_gpu_is_read_for_one(problems):
    cache = ("features.tables.0.kernel=fused_uvm_caching", "features.tables.0.cache_load_factor=0.1")
    assert problems("train.device=cuda", "train.comms=bf16", "train.pipeline=prefetch_sparse_dist", *cache) == []
    assert problems("features.tables.0.kernel=fused") == [
        "features.tables.0.cache_load_factor: 0.1 of a cache that kernel: fused does not have; "
        "take kernel: fused_uvm_caching, or remove it"
    ]


def test_a_config_of_a_gpu_can_be_made_one_for_the_cpu(raw):
    raw["features"]["tables"][0] |= {"kernel": "fused_uvm_caching", "cache_load_factor": 0.1, "sharding": ["row_wise"]}
    raw["train"] = {"device": "cuda", "comms": "bf16", "pipeline": "prefetch_sparse_dist"}
    parse(raw)
    assert apply_overrides(raw, [*for_the_cpu(raw), "train.device=cpu"]) == []
    assert parse(raw).features.tables[0].kernel == "auto"
