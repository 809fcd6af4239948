"""Another bundle takes the place of the one that is served, or does not, and says why."""

import json
import shutil
import threading
import zipfile
from pathlib import Path

import pytest

from torchrec_mtl.serving.bundle import read_about, write_about
from torchrec_mtl.serving.server import serving as serving_module
from torchrec_mtl.serving.server.model import Sources, load_index

ASK = {"user": {"user_id": 3}, "candidates": [{"item_id": 1}]}


@pytest.fixture
def models(sources, tmp_path) -> Path:
    """A folder with ``good`` and ``index``, copies of the bundle and its index."""
    shutil.copytree(sources.bundle, tmp_path / "good")
    shutil.copytree(sources.index, tmp_path / "index")
    return tmp_path


def at_step(folder, step):
    """The same bundle, said to be of another step."""
    write_about(folder, read_about(folder).model_copy(update={"step": step}))


def crafted(folder):
    """The bundle with a program that is another archive, its checksum in order."""
    program = folder / "programs" / "one_user.pt2"
    with zipfile.ZipFile(program, "a") as archive:
        archive.writestr("one_user/extra.pkl", b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    write_about(folder, read_about(folder))


def torn(folder):
    (folder / "programs" / "one_user.pt2").write_bytes(b"PK")


def gone(folder):
    shutil.rmtree(folder)


def test_another_bundle_is_served_from_then_on(start, models):
    shutil.copytree(models / "good", models / "next")
    at_step(models / "next", 77)
    server = start(allow_reload=True, its_sources=Sources(models / "good"))
    assert server.post("/reload", {"bundle": "next"}).json() == {"run": "run", "step": 77}
    assert server.client.get("/health").json()["step"] == 77
    assert server.post("/score", ASK).status_code == 200
    assert server.metric('torchrec_mtl_reloads_total{result="loaded"}') == 1
    assert server.metric('torchrec_mtl_bundle_info{head="dmmp",run="run",step="77",version="0.1.0.dev0"}') == 1


def test_a_signal_loads_what_the_command_named_and_a_request_what_is_served(start, models, monkeypatch, model):
    """A link that is switched is followed by SIGHUP, also after somebody named another folder."""
    loaded = []
    monkeypatch.setattr(serving_module, "load_model", lambda sources, _: loaded.append(sources.bundle.name) or model)
    server = start(allow_reload=True, its_sources=Sources(models / "good"))
    for document in ({"bundle": "next"}, {}):
        assert server.post("/reload", document).status_code == 200
    server.client.portal.call(server.serving.reload_on_signal)
    server.post("/reload", {})
    assert loaded == ["next", "next", "good", "good"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(gone, "no bundle in"), (torn, "is damaged"), (crafted, "extra.pkl")],
)
def test_a_bundle_that_cannot_be_served_changes_nothing(start, models, spoil, message):
    shutil.copytree(models / "good", models / "bad")
    spoil(models / "bad")
    server = start(allow_reload=True, its_sources=Sources(models / "good"))
    before = server.post("/score", ASK).json()
    answer = server.post("/reload", {"bundle": "bad"})
    assert answer.status_code == 422
    assert message in answer.json()["problems"][0]["message"]
    assert message in server.client.get("/health").json()["reload_refused"]
    assert server.metric('torchrec_mtl_reloads_total{result="refused"}') == 1
    assert server.post("/score", ASK).json() == before
    if spoil is gone:
        assert server.post("/reload", {}).status_code == 200
        assert server.client.get("/health").json()["reload_refused"] is None


@pytest.mark.parametrize("name", ["../good", "/tmp", "..", ".", "", "a/b", "a\\b", "a\n"])
def test_only_folders_beside_the_served_one_are_named(start, models, name):
    server = start(allow_reload=True, its_sources=Sources(models / "good", models / "index"))
    for what in ("bundle", "index"):
        answer = server.post("/reload", {what: name})
        assert answer.status_code == 422
        assert "expected the name of a folder beside" in answer.text
    assert server.metric('torchrec_mtl_reloads_total{result="refused"}') == 0


@pytest.mark.parametrize(
    ("document", "message"),
    [({"bundl": "x"}, "Did you mean 'bundle'?"), ({"bundle": 3}, "string"), ({"index": "x"}, "without --index")],
)
def test_a_wrong_request_is_explained(start, models, document, message):
    answer = start(allow_reload=True, its_sources=Sources(models / "good")).post("/reload", document)
    assert answer.status_code == 422
    assert message in answer.text


def test_without_leave_there_is_no_such_path(start):
    server = start()
    assert server.post("/reload", {}).status_code == 404
    assert "/reload" not in server.client.get("/openapi.json").json()["paths"]


def test_one_reload_at_a_time_and_scores_go_on(start, models, monkeypatch, model):
    go, entered = threading.Event(), threading.Event()

    def slowly(*_):
        entered.set()
        assert go.wait(30)
        return model

    monkeypatch.setattr(serving_module, "load_model", slowly)
    server = start(allow_reload=True, its_sources=Sources(models / "good"))
    answers = []
    thread = threading.Thread(target=lambda: answers.append(server.post("/reload", {})))
    thread.start()
    assert entered.wait(20)
    assert server.post("/reload", {}).status_code == 409
    assert server.post("/score", ASK).status_code == 200
    go.set()
    thread.join()
    assert answers[0].status_code == 200


def rewritten(model, sources, folder, **changes):
    """Load the index with other words about it."""
    shutil.copytree(sources.index, folder)
    about = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**about, **changes}))
    return load_index(folder, model.predictor)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"notes": {"run": "/elsewhere/another"}}, "was made with run another, and the bundle with run run"),
        ({"notes": {"run": "/here/run", "step": "999"}}, "was made with step 999"),
        ({"tasks": ["buy", "click"]}, "an index of the tasks buy, click, and the bundle has click, long_view"),
    ],
)
def test_an_index_of_another_training_is_refused(model, sources, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        rewritten(model, sources, tmp_path / "index", **changes)


def test_an_index_of_the_same_name_and_step_but_another_checkpoint_is_refused(model, sources, tmp_path):
    notes = {"run": "/here/run", "step": str(model.step), "checkpoint": "0" * 64}
    with pytest.raises(ValueError, match=r"made of another checkpoint .*; make the index again"):
        rewritten(model, sources, tmp_path / "index", notes=notes)


def test_an_index_is_taken_wherever_its_run_lies_now(model, sources, tmp_path):
    notes = {"run": "/renamed/since", "step": str(model.step), "checkpoint": model.predictor.about.checkpoint}
    assert len(rewritten(model, sources, tmp_path / "index", notes=notes)) == len(model.index)


def test_an_index_of_before_it_noted_its_step_is_taken(model, sources, tmp_path):
    assert len(rewritten(model, sources, tmp_path / "index", notes={"run": "/here/run"})) == len(model.index)
