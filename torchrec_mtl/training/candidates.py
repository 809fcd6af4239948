"""What a head that learns to retrieve needs of the training data: how frequent items are, and items to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchrec_mtl.config.run import RunConfig
from torchrec_mtl.data.corpus import read_corpus
from torchrec_mtl.data.encode import Encoder
from torchrec_mtl.data.files import DataFile, open_files
from torchrec_mtl.data.found import read_found
from torchrec_mtl.data.frequencies import Frequencies, count_items
from torchrec_mtl.data.lookup import Lookup
from torchrec_mtl.data.negatives import Negatives
from torchrec_mtl.data.one_side import one_sided
from torchrec_mtl.data.statistics import Statistics
from torchrec_mtl.training.distributed import on_rank_0


@dataclass(frozen=True)
class TrainingCandidates:
    """Items as negatives.

    Attributes:
        frequencies: of the items of a batch.
        negatives: draws further ones; None: the batch's rows are all.
        query: column of the queries, where negatives are drawn for them.
    """

    frequencies: Frequencies
    negatives: Negatives | None = None
    query: str | None = None


def read_candidates(config: RunConfig, train: Sequence[DataFile], statistics: Statistics) -> TrainingCandidates | None:
    """Count the items of the training data, and read those that are drawn; None where the head wants neither.

    Args:
        config: the run.
        train: the training data.
        statistics: of it.

    Raises:
        ValueError: items or what was found do not fit, on all ranks.
    """
    retrieval = config.retrieval
    if retrieval is None or not config.head.needs_candidates:
        return None
    counted = on_rank_0(lambda: count_items(train, retrieval.item))
    drawn = retrieval.negatives
    if drawn is None:
        return TrainingCandidates(counted)
    encoder = Encoder(config.data, config.features, config.tasks, statistics, labels=False)
    files = one_sided(open_files(retrieval.items), config.features, "item")
    corpus = read_corpus(files, encoder, retrieval.item)
    found = None
    if drawn.found is not None:
        finds, items = open_files(drawn.found), Lookup(corpus.keys)
        found = on_rank_0(lambda: read_found(finds, train, retrieval, config.tasks, items))
    negatives = Negatives(drawn, corpus, counted, seed=config.train.seed, streams=config.data.streams, found=found)
    mixed = counted.mixed(corpus.keys, rows=config.data.batch_size, popular=drawn.popular, uniform=drawn.uniform)
    return TrainingCandidates(mixed, negatives, retrieval.query if drawn.hard else None)
