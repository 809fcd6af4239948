"""An item index in a folder: it comes back as it was, whatever stops a save, and needs no torch."""

import json
import os
import shutil
import subprocess
import sys

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrec_mtl.retrieval.index import IndexOptions, ItemIndex

TASKS = ("click", "purchase")
KINDS = ("flat", "ivf", "hnsw")
QUERIES = np.random.default_rng(1).standard_normal((6, 2, 5)).astype(np.float32)
VECTORS = np.random.default_rng(0).standard_normal((80, 5)).astype(np.float32)


def build(kind="flat", **options):
    """60 items of which 20 were removed."""
    index = ItemIndex.build(pa.array(range(60)), VECTORS[:60], TASKS, IndexOptions(kind, **options))
    index.remove(pa.array(range(10, 30)))
    return index


def same(one, other):
    (ids, scores), (other_ids, other_scores) = (index.search(QUERIES, 70) for index in (one, other))
    return ids.equals(other_ids) and np.array_equal(scores, other_scores)


@pytest.mark.parametrize("options", [{"kind": "flat"}, {"kind": "ivf", "probes": 2}, {"kind": "hnsw", "ef_search": 9}])
def test_what_is_loaded_is_what_was_saved_and_goes_on_alike(options, tmp_path):
    index = build(**options)
    index.save(tmp_path / "some" / "index")
    loaded = ItemIndex.load(str(tmp_path / "some" / "index"))
    assert (loaded.options, loaded.tasks, loaded.dim) == (index.options, index.tasks, index.dim)
    assert same(loaded, index)
    assert loaded.recall(QUERIES, 5) == index.recall(QUERIES, 5)
    for there in (index, loaded):
        there.add(pa.array(range(10, 20)), VECTORS[60:70])
        there.remove(pa.array([59, 12]))
    assert loaded.ids.equals(index.ids)
    assert same(loaded, index)


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_without_items_comes_back(kind, tmp_path):
    index = build(kind)
    index.remove(index.ids)
    index.save(tmp_path / "index")
    loaded = ItemIndex.load(tmp_path / "index")
    assert len(loaded) == 0
    loaded.add(pa.array([5]), VECTORS[:1])
    assert loaded.search(QUERIES[:1], 1)[0].to_pylist() == [[5]]


def test_the_folder_says_what_it_holds(tmp_path):
    build("ivf").save(tmp_path / "index")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index"]
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"index.faiss", "ids.parquet", "index.json"}
    about = json.loads((tmp_path / "index" / "index.json").read_text())
    assert (about["format"], about["items"], about["dim"], about["tasks"]) == (1, 40, 5, list(TASKS))
    assert about["options"]["lists"] == 31


def test_notes_are_kept(tmp_path):
    index = ItemIndex.build(pa.array([1]), VECTORS[:1], TASKS, notes={"run": "runs/é"})
    index.save(tmp_path / "index")
    assert ItemIndex.load(tmp_path / "index").notes == index.notes == {"run": "runs/é"}


class Stopped(Exception):
    pass


def stop_at(monkeypatch, step):
    """Have the so-maniest operation on files fail, before or after it is done; return the count of operations."""
    calls = []

    def patch(module, name):
        original = getattr(module, name)

        def replacement(*args, **kwargs):
            calls.append(name)
            if len(calls) == step // 2 and step % 2 == 0:
                raise Stopped
            result = original(*args, **kwargs)
            if len(calls) == step // 2:
                raise Stopped
            return result

        monkeypatch.setattr(module, name, replacement)

    for module, name in (
        (faiss, "write_index"),
        (pq, "write_table"),
        (os, "fsync"),
        (os, "replace"),
        (shutil, "rmtree"),
    ):
        patch(module, name)
    return calls


def test_a_save_stopped_anywhere_leaves_one_whole_index(tmp_path):
    folder = tmp_path / "index"
    before, after = build(), build()
    after.remove(pa.array([0]))
    outcomes = []
    for step in range(2, 60):
        before.save(folder)
        with pytest.MonkeyPatch.context() as patches:
            calls = stop_at(patches, step)
            try:
                after.save(folder)
            except Stopped:
                pass
            else:
                break
        loaded = ItemIndex.load(folder)
        outcomes.append(same(loaded, after))
        assert outcomes[-1] or same(loaded, before)
        after.save(folder)  # the next save mends what the stopped one left
        assert same(ItemIndex.load(folder), after)
        assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert calls.count("replace") == 2, "the last round ran to its end, through both renames"
    assert set(outcomes) == {False, True}, "some stopped before the change, some after"


def test_a_link_leads_to_the_folder_that_is_replaced(tmp_path):
    build().save(tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    after = build("hnsw")
    after.save(tmp_path / "current")
    assert (tmp_path / "current").is_symlink()
    assert same(ItemIndex.load(tmp_path / "v1"), after)


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes holds other files, such as mine.txt; name a folder of its own"):
        build().save(tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "x"
    with pytest.raises(ValueError, match=r"mine.txt is a file; name a folder"):
        build().save(tmp_path / "notes" / "mine.txt")


def change(folder, **about):
    """Have an index say something else of itself; without checksums it is one of an earlier version."""
    path = folder / "index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **about}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), r"no index in .*index: there is no index.json; ItemIndex.save writes one"),
        (lambda f: (f / "index.json").unlink(), r"no index in .*index: there is no index.json"),
        (lambda f: (f / "index.json").write_text("{"), r"index.json cannot be read: .*; save the index again"),
        (lambda f: (f / "index.json").write_text("[]"), r"format None \(written by torchrec_mtl unknown\)"),
        (
            lambda f: (f / "index.json").write_text('{"format": 2, "torchrec_mtl": "9.1"}'),
            r"has format 2 \(written by torchrec_mtl 9\.1\), and this version reads format 1; build it again",
        ),
        (lambda f: (f / "ids.parquet").unlink(), r"is not whole: ids.parquet missing; save it again"),
        (
            lambda f: faiss.write_index(faiss.IndexFlatIP(5), str(f / "index.faiss")),
            r"the index in .* is damaged: index.faiss is not what was written; save it again",
        ),
        (lambda f: change(f, options={"kind": "flat", "more": 1}), r"says what cannot be: TypeError.*save it again"),
        (lambda f: change(f, tasks=None), r"says what cannot be: TypeError"),
        (lambda f: change(f, sha256=3), r"index.json: sha256 must be a mapping \(found int\)"),
        (lambda f: change(f, sha256={}) or (f / "index.faiss").write_bytes(b"IxFI"), r"is damaged: .*; save it again"),
        (lambda f: change(f, sha256={}) or (f / "ids.parquet").write_bytes(b"PAR1"), r"is damaged: .*; save it again"),
        (
            lambda f: change(f, sha256={}) or faiss.write_index(faiss.IndexFlatIP(5), str(f / "index.faiss")),
            r"do not belong together: 40 ids, 0 vectors of width 5, and index.json says 40 items of width 5",
        ),
    ],
)
def test_folders_that_are_refused(spoil, message, tmp_path):
    build().save(tmp_path / "index")
    spoil(tmp_path / "index")
    with pytest.raises(ValueError, match=message):
        ItemIndex.load(tmp_path / "index")


def test_without_faiss_it_says_what_to_install(tmp_path, monkeypatch):
    index = build()
    index.save(tmp_path / "index")
    monkeypatch.setitem(sys.modules, "faiss", None)
    for call in (build, lambda: ItemIndex.load(tmp_path / "index")):
        with pytest.raises(ImportError, match=r'^faiss is missing; run: pip install "torchrec_mtl\[retrieval\]"$'):
            call()


SERVER = """
import sys
from torchrec_mtl.retrieval.index import ItemIndex
assert "faiss" not in sys.modules, "faiss is imported before it is needed"
import numpy as np
print(ItemIndex.load(sys.argv[1]).search(np.ones((1, 2, 5), np.float32), 3)[0].to_pylist())
print([name for name in ("torch", "torchrec", "pydantic") if name in sys.modules])
"""


def test_it_is_served_without_torch(tmp_path):
    index = build("hnsw")
    index.save(tmp_path / "index")
    command = [sys.executable, "-c", SERVER, str(tmp_path / "index")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(index.search(np.ones((1, 2, 5), np.float32), 3)[0].to_pylist()), "[]"]
