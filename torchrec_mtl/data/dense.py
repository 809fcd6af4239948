"""Dense columns: transformed, normalised by the training data's mean and standard deviation, null as the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from torchrec_mtl.config.features import DenseConfig
from torchrec_mtl.data.arrow import Doubles, get_array, to_doubles
from torchrec_mtl.data.problems import Problems
from torchrec_mtl.data.rows import Floats

LARGEST = float(np.finfo(np.float32).max)


def transform(feature: DenseConfig, array: pa.Array, problems: Problems) -> Doubles:
    """Return a column before normalisation.

    Args:
        feature: its config.
        array: [N] numbers or booleans.
        problems: takes infinite values (beyond float32).

    Returns:
        [N] float64; NaN where the value is null or infinite.
    """
    values = to_doubles(array)
    infinite = np.abs(values) > LARGEST
    if infinite.any():
        problems.add(
            f"dense feature '{feature.name}', column '{feature.source}'",
            "infinite values",
            count=int(infinite.sum()),
            advice="Write null (it becomes the mean) or a finite number.",
        )
        values = np.where(infinite, np.nan, values)
    return np.sign(values) * np.log1p(np.abs(values)) if feature.transform == "log1p" else values


class DenseEncoder:
    """Encodes all dense columns of a run."""

    def __init__(self, features: Sequence[DenseConfig], scales: Mapping[str, tuple[float, float]]) -> None:
        """Take the features and, by name, the (mean, standard deviation) of those that are normalised."""
        self.features = features
        self._scales = [scales.get(f.name, (0.0, 1.0)) if f.normalize else (0.0, 1.0) for f in features]

    def encode(self, table: pa.Table, problems: Problems) -> Floats:
        """Return [N, D0]: every dense column of the table's N rows."""
        dense = np.empty((table.num_rows, len(self.features)), np.float32)
        for i, (feature, (mean, std)) in enumerate(zip(self.features, self._scales)):
            values = (transform(feature, get_array(table, feature.source), problems) - mean) / std
            dense[:, i] = np.where(np.isnan(values), 0.0, values)
        return dense
