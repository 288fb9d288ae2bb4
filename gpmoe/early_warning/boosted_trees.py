"""Gradient-boosted trees as arrays: grown by scikit-learn, kept and read here, so that a file needs no pickle.

p(x) = σ(b + Σ_t leaf_t(x)),   at a node x_f <= threshold goes left, NaN where the node says
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss

from gpmoe.linalg.compiler import njit

Array = NDArray[np.float64]

_COLUMNS = ("feature_idx", "num_threshold", "missing_go_to_left", "left", "right", "is_leaf", "value")


@dataclass(frozen=True, eq=False)
class BoostedTrees:
    """A fitted ensemble for two classes.

    Attributes:
        baseline: b, log odds.
        starts: first node of each tree, ``(trees,)``.
        nodes: feature, threshold, whether NaN goes left, left and right child (within the tree), whether it is a leaf,
            and value, ``(nodes, 7)``.

    Example:
        >>> X = np.arange(2000.0)[:, None]
        >>> trees = BoostedTrees.grow(X, (X[:, 0] > 999).astype(float), max_iter=20, seed=0)
        >>> bool(trees.predict(np.array([[3.0], [1900.0]], dtype=np.float32)).argmax())
        True
    """

    baseline: float
    starts: NDArray[np.int64]
    nodes: Array

    @classmethod
    def grow(
        cls,
        X: NDArray[Any],
        y: Array,
        held: tuple[NDArray[Any], Array] | None = None,
        *,
        max_iter: int = 150,
        learning_rate: float = 0.06,
        seed: int = 0,
    ) -> "BoostedTrees":
        """Fit to features ``(n, d)``, NaN allowed, and labels ``(n,)``, 0 or 1.

        Args:
            X, y: to learn from.
            held: features and labels of others: only so many trees are kept as predict those best.
            max_iter: trees.
            learning_rate: by which each counts.
            seed: of the features that a split may look at.
        """
        model = boosting(max_iter, learning_rate, seed).fit(X, y)
        kept = max_iter
        if held is not None:
            losses = [log_loss(held[1], p[:, 1], labels=[0, 1]) for p in model.staged_predict_proba(held[0])]
            kept = 1 + int(np.argmin(losses))
        trees = [each.nodes for (each,) in model._predictors[:kept]]
        starts = np.concatenate([[0], np.cumsum([len(nodes) for nodes in trees])])[:-1].astype(np.int64)
        columns = [np.concatenate([nodes[name] for nodes in trees]).astype(np.float64) for name in _COLUMNS]
        return cls(float(np.ravel(model._baseline_prediction)[0]), starts, np.column_stack(columns))

    @classmethod
    def averaged(cls, members: Sequence["BoostedTrees"]) -> "BoostedTrees":
        """One ensemble whose log odds are the mean of those of others."""
        baseline = float(np.mean([each.baseline for each in members]))
        first = np.cumsum([0, *(len(each.nodes) for each in members)])
        starts = np.concatenate([each.starts + at for each, at in zip(members, first[:-1], strict=True)])
        nodes = np.concatenate([each.nodes for each in members])
        nodes[:, _COLUMNS.index("value")] /= len(members)
        return cls(baseline, starts, nodes)

    def predict(self, X: NDArray[Any]) -> Array:
        """P(y = 1) at rows ``(n, d)``, ``(n,)``."""
        total = np.full(len(X), self.baseline)
        _descend(np.asarray(X, dtype=np.float64), self.starts, self.nodes, total)
        found: Array = expit(total)
        return found


def boosting(max_iter: int, learning_rate: float, seed: int) -> HistGradientBoostingClassifier:
    """scikit-learn's, set up for rare labels on correlated rows: large leaves, and a third of the features a split."""
    return HistGradientBoostingClassifier(
        max_iter=max_iter, learning_rate=learning_rate, max_leaf_nodes=31, min_samples_leaf=200,
        l2_regularization=10.0, max_features=0.3, early_stopping=False, random_state=seed,
    )  # fmt: skip


@njit(cache=True, nogil=True)
def _descend(X, starts, nodes, total):  # type: ignore[no-untyped-def]
    for i in range(len(X)):
        for start in starts:
            node = start
            while nodes[node, 5] == 0.0:
                x = X[i, int(nodes[node, 0])]
                left = nodes[node, 2] != 0.0 if np.isnan(x) else x <= nodes[node, 1]
                node = start + int(nodes[node, 3] if left else nodes[node, 4])
            total[i] += nodes[node, 6]
