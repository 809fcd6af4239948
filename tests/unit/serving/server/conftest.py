"""A bundle of a retrieval head with its index, made once, and clients of servers in this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.made_once import made_once
from tests.retrieval_runs import make_files, retrieval_config
from tests.runs import train_one
from torchrec_mtl.retrieval.index import IndexOptions
from torchrec_mtl.serving.export import Options, export_run
from torchrec_mtl.serving.server.app import make_app
from torchrec_mtl.serving.server.limits import Limits
from torchrec_mtl.serving.server.model import Model, Sources, load_model
from torchrec_mtl.serving.server.monitoring import Monitor
from torchrec_mtl.serving.server.pool import Pool
from torchrec_mtl.serving.server.serving import Serving
from torchrec_mtl.training.corpus import index_run
from torchrec_mtl.training.distributed import process_group

pytest.importorskip("faiss")


@dataclass(frozen=True)
class Started:
    """A server in this process."""

    client: TestClient
    serving: Serving
    pool: Pool

    def post(self, path, document):
        return self.client.post(path, json=document)

    def metric(self, line):
        """The value of a line of /metrics, 0 where it is not there."""
        found = [x for x in self.client.get("/metrics").text.splitlines() if x.startswith(f"{line} ")]
        return float(found[0].split()[-1]) if found else 0.0


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = made_once(tmp_path_factory, "served", _make)
    return Sources(folder / "bundle", folder / "index")


def _make(folder: Path) -> None:
    files = make_files(folder)
    with process_group("cpu"):
        train_one(retrieval_config(files, folder / "run"))
    export_run(folder / "run", folder / "bundle", Options(rows=100))
    index_run(folder / "run", [files["items"]], folder / "index", IndexOptions())


@pytest.fixture(scope="session")
def model(sources: Sources) -> Model:
    return load_model(sources, Limits())


@pytest.fixture
def start(model: Model, sources: Sources) -> Iterator[Callable[..., Started]]:
    """Start a server of the bundle, with limits of one's own."""
    started = []

    @contextmanager
    def client(app):
        with TestClient(app, raise_server_exceptions=False) as client:
            yield client

    def make(allow_reload=False, its_sources=None, its_model=None, hosts=None, **limits):
        wanted = Limits(**{"workers": 2, **limits})
        mine = its_model or replace(model, reader=_reader(model, wanted))
        serving, pool = Serving(its_sources or sources, mine, wanted, Monitor()), Pool(wanted)
        opened = client(make_app(serving, pool, allow_reload=allow_reload, hosts=hosts))
        started.append((opened, serving, pool))
        return Started(opened.__enter__(), serving, pool)

    yield make
    for opened, serving, pool in started:
        opened.__exit__(None, None, None)
        serving.close()
        pool.close()


def _reader(model: Model, limits: Limits):
    from torchrec_mtl.serving.server.questions import Reader

    return Reader(model.columns, model.predictor.tasks, limits)
