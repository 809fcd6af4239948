"""The benchmark of item indices prints a row for each kind and effort, and its data are not easier than they say."""

import re

import faiss
import numpy as np

from benchmarks.index import main, make_data


def test_it_prints_a_row_for_each_kind_and_effort(capsys):
    threads = faiss.omp_get_max_threads()
    try:
        main(["--sizes", "300", "400", "--dim", "5", "--queries", "9", "--k", "3", "--repeats", "1"])
    finally:
        faiss.omp_set_num_threads(threads)
    printed = capsys.readouterr().out
    assert re.findall(r"^### (\S+) items$", printed, re.MULTILINE) == ["300", "400"]
    rows = re.findall(r"^\| (\w+) ?(\S*) \| \d+\.\d \| [\d,.e+]+ \| ([01]\.\d{3}) \| \d\.\d \|$", printed, re.MULTILINE)
    efforts = [("ivf", f"probes={n}") for n in (16, 64, 256)] + [("hnsw", f"ef_search={n}") for n in (64, 128, 256)]
    assert [row[:2] for row in rows] == [("flat", ""), *efforts] * 2
    assert {row[2] for row in rows if row[0] == "flat"} == {"1.000"}


def test_lengths_vary_as_asked():
    rng = np.random.default_rng(0)
    vectors, queries = make_data(5000, 33, 7, spread=0.8, rng=rng)
    assert (vectors.shape, queries.shape) == ((5000, 33), (7, 2, 33))
    logarithms = np.log(np.linalg.norm(vectors[:, :-1], axis=1))
    assert 0.75 < logarithms.std() < 0.9
    assert len(np.unique(queries[:, 0], axis=0)) == 7
    assert (queries.sum(1)[:, -1] == 1).all(), "the bias counts once"
