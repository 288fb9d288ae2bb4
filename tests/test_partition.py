"""Rows divided by hyperplanes: sizes, regions, ties, and trees grafted onto trees."""

import numpy as np
import pytest

from gpmoe.errors import InputError, ShapeError
from gpmoe.models.clique_tree import clique_tree
from gpmoe.models.expert_layout import ExpertLayout
from gpmoe.models.partition import Kind, graft, partition_rows, random_parts

kinds = pytest.mark.parametrize("kind", ["kmeans", "tree"])


@pytest.fixture
def X() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((103, 3))


@kinds
@pytest.mark.parametrize("n_parts", [1, 2, 3, 7, 16, 103])
def test_parts_differ_by_one_row_at_most_and_rows_lie_in_their_regions(kind: Kind, n_parts: int, X) -> None:
    partition, labels = partition_rows(X, n_parts, kind)
    sizes = np.bincount(labels, minlength=n_parts)
    assert partition.n_parts == n_parts
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1
    assert np.array_equal(partition.assign(X), labels)


@kinds
def test_repeated_rows_are_shared_out(kind: Kind) -> None:
    _, labels = partition_rows(np.ones((10, 2)), 5, kind)
    assert np.bincount(labels).tolist() == [2] * 5


def test_two_clusters_are_found_whatever_their_direction() -> None:
    rng = np.random.default_rng(1)
    X = np.concatenate([rng.normal([0, 0], 0.1, (20, 2)), rng.normal([1, 1], 0.1, (20, 2))])
    _, labels = partition_rows(X, 2)
    assert labels[:20].min() == labels[:20].max() != labels[20:].max() == labels[20:].min()


def test_neighbours_are_nearer_than_with_random_parts(X) -> None:
    def spread(labels: np.ndarray) -> float:
        return float(sum(((X[labels == part] - X[labels == part].mean(0)) ** 2).sum() for part in range(8)))

    apart = spread(random_parts(len(X), 8, np.random.default_rng(0)))
    assert max(spread(partition_rows(X, 8, kind)[1]) for kind in ("tree", "kmeans")) < 0.6 * apart


def test_a_grafted_tree_sends_points_where_its_branches_would(X) -> None:
    trunk, cells = partition_rows(X, 3)
    branches = [partition_rows(X[cells == cell], parts)[0] for cell, parts in enumerate((4, 1, 5))]
    whole = graft(trunk, branches)
    new = np.random.default_rng(2).standard_normal((50, 3))
    first = np.array([0, 4, 5])
    cell = trunk.assign(new)
    wanted = [first[c] + branches[c].assign(x[None])[0] for c, x in zip(cell, new, strict=True)]
    assert whole.n_parts == 10
    assert whole.assign(new).tolist() == wanted


def test_what_can_not_be_divided_is_refused(X) -> None:
    with pytest.raises(InputError, match="from 1 to the number of rows, 103"):
        partition_rows(X, 104)
    with pytest.raises(InputError, match="'kmeans' or 'tree'"):
        partition_rows(X, 2, "random")  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"\(m, 3\)"):
        partition_rows(X, 2)[0].assign(X[:, :2])


# Who answers.


def layout_of(X: np.ndarray, n_parts: int, **more) -> tuple[ExpertLayout, np.ndarray]:
    regions, labels = partition_rows(X, n_parts)
    order = np.argsort(labels, kind="stable")
    centers = np.stack([X[labels == part].mean(0) for part in range(n_parts)])
    offsets = np.concatenate([[0], np.cumsum(np.bincount(labels))])
    return ExpertLayout(offsets, centers, regions, np.arange(0, len(X), 10), **more), order


def test_a_point_is_answered_by_its_own_expert_and_those_around_it(X) -> None:
    layout, _ = layout_of(X, 10, n_nearest=4)
    assert layout.nearest(X).shape == (103, 4)
    assert np.array_equal(layout.nearest(X)[:, 0], layout.regions.assign(X))
    for own, near in zip(layout.neighbours[:, 0], layout.neighbours, strict=True):
        distance = ((layout.centers - layout.centers[own]) ** 2).sum(1)
        assert set(near) == set(np.argsort(distance)[:4])


def test_without_regions_all_experts_answer(X) -> None:
    layout, _ = layout_of(X, 10)
    everyone = ExpertLayout(layout.offsets, layout.centers, None, layout.communication, n_nearest=2)
    assert np.array_equal(np.sort(everyone.nearest(X[:3])), [np.arange(10)] * 3)


@pytest.mark.parametrize("with_communication", [False, True])
def test_rows_of_experts_are_theirs_and_the_shared_ones_once(with_communication: bool, X) -> None:
    layout, _ = layout_of(X, 10)
    rows, offsets = layout.rows_of(np.array([3, 0]), with_communication=with_communication)
    for expert, start, stop in zip((3, 0), offsets[:-1], offsets[1:], strict=True):
        own = set(range(layout.offsets[expert], layout.offsets[expert + 1]))
        wanted = own | set(layout.communication.tolist()) if with_communication else own
        assert len(rows[start:stop]) == len(wanted)
        assert set(rows[start:stop].tolist()) == wanted


def test_layouts_that_do_not_fit_are_refused(X) -> None:
    layout, _ = layout_of(X, 10)
    with pytest.raises(InputError, match="at least one row"):
        ExpertLayout(np.array([0, 0, 103]), layout.centers[:2], None, layout.communication)
    with pytest.raises(ShapeError, match="2 experts"):
        ExpertLayout(np.array([0, 50, 103]), layout.centers, None, layout.communication)
    with pytest.raises(ShapeError, match="below 103"):
        ExpertLayout(layout.offsets, layout.centers, None, np.array([103]))
    with pytest.raises(InputError, match="`n_nearest`"):
        layout_of(X, 10, n_nearest=0)


# Who knows whom.


@pytest.mark.parametrize("degree", [1, 2, 3, 5, 12])
def test_predecessors_of_every_block_lie_in_an_earlier_clique(degree: int) -> None:
    centers = np.random.default_rng(0).standard_normal((12, 2))
    tree = clique_tree(centers, degree)
    assert sorted(tree.order) == list(range(12))
    for k, clique in enumerate(tree.cliques):
        assert clique[-1] == k
        assert len(clique) == min(k + 1, degree)
        if k:
            assert tree.hosts[k] < k
            assert set(clique[:-1]) <= set(tree.cliques[tree.hosts[k]])
    assert len(tree.answering) == 12 - degree + 1
    assert set(np.concatenate([tree.cliques[k] for k in tree.answering])) == set(range(12))


def test_cliques_that_answer_hold_the_block_first() -> None:
    centers = np.random.default_rng(0).standard_normal((30, 2))
    tree = clique_tree(centers, 3)
    neighbours = np.argsort(((centers[:, None] - centers) ** 2).sum(-1), axis=1)[:, :6]
    answering = tree.answering_near(neighbours)
    for block, first in enumerate(answering[:, 0]):
        assert block in tree.order[tree.cliques[tree.answering[first]]]
    assert all(len(set(row)) == len(row) for row in answering)


def test_more_correlation_than_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="from 1 to the number of experts, 2"):
        clique_tree(np.zeros((2, 1)), 3)
