"""Test labels that are kept apart from the test split, and the metrics of its scores by them.

`build_dataset.py` writes `test_labels.parquet` beside the splits where a log has them: ID and label, in the order of
test.parquet, so that nothing that trains or scores sees them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mm_fibinet import schema
from mm_fibinet.errors import UserError
from mm_fibinet.metrics import evaluate_metrics, undefined_metrics
from mm_fibinet.parquet_reader import identities, read_column, read_slices


@dataclass(frozen=True)
class KnownLabels:
    """The labels of a test split.

    Attributes:
        labels: float [N], 0 or 1.
        groups: integers [N], whose row each is; None without groups.
        names: of the metrics, in their order.
    """

    labels: np.ndarray
    groups: np.ndarray | None
    names: tuple[str, ...]

    @classmethod
    def read(
        cls, path: str | Path, test: str | Path, label: str, metrics: Sequence[str], group: str | None
    ) -> "KnownLabels":
        """Read and check them.

        Args:
            path: a parquet file with ID, as the test split has it, and the label.
            test: the test split.
            label: the column.
            metrics: what is to be computed, see `evaluate_metrics`.
            group: the test split's column that gAUC groups by.

        Raises:
            UserError: they are not the test split's, or no labels.
        """
        count, expected = len(schema.read_test_ids(path)), len(schema.read_test_ids(test))
        if count != expected:
            raise UserError(f"{path}: has {count} rows, expected {expected}, those of {test}")
        labels = read_column(path, label, integer=False)
        schema.require_binary(labels, path, label)
        groups = None
        if group:
            slices = [identities(arrays[group], test, group, first) for first, arrays in read_slices(test, [group])]
            groups = np.concatenate(slices)
        return cls(labels, groups, tuple(metrics))

    def metrics(self, scores: np.ndarray) -> dict[str, float]:
        """{metric: value} of scores, float [N]; NaN of those that are `undefined`."""
        return evaluate_metrics(self.labels, scores, self.names, self.groups, allow_undefined=True)

    def undefined(self) -> dict[str, str]:
        """{metric: why} of those that the labels leave without a value."""
        return undefined_metrics(self.names, self.labels, self.groups)
