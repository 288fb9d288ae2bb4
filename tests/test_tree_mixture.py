"""Mixtures over random partitions: against brute force, on jumps, and at the front door."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from gpytorch.kernels import LinearKernel, MaternKernel, RBFKernel, ScaleKernel
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor
from torch.testing import assert_close

import gpmoe
from gpmoe import GPRegressor, io
from gpmoe.errors import FileFormatError, InputError, UnsupportedKernelError
from gpmoe.estimators.tree_mixture_regressor import TreeMixtureRegressor
from gpmoe.inference.fit_tree_mixture import fit_tree_mixture
from gpmoe.models import ExactGP
from gpmoe.models.random_partitions import RandomPartitions
from gpmoe.models.tree_mixture import TreeMixture

DATA = Path(__file__).parents[2] / "shared" / "data"


def partitions_of(X: Tensor, count: int = 4, leaf_size: int = 6, **more) -> RandomPartitions:
    return RandomPartitions.draw(X, count, leaf_size=leaf_size, seed=0, **more)


@pytest.fixture
def trees(table: tuple[Tensor, Tensor]) -> TreeMixture:
    X, y = table
    trees = TreeMixture(X, y, partitions_of(X))
    trees.covar_module.base_kernel.lengthscale = torch.tensor([[0.8, 2.0]], dtype=torch.float64)
    trees.likelihood.noise = torch.tensor([0.02], dtype=torch.float64)
    trees.mean_module.constant = 0.3
    return trees


def brute_force(trees: TreeMixture, X_new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log evidence of each partition, and mean and latent variance under each, ``(V, m)``, by dense algebra."""
    X, y, noise = trees.X, trees.y, trees.likelihood.noise
    leaves, of_new = trees.partitions.route(X), trees.partitions.route(X_new)
    evidences, means, variances = [], [], []
    with torch.no_grad():
        for own, new in zip(leaves, of_new, strict=True):
            together = own.unsqueeze(-1) == own
            K = torch.where(together, trees.covar_module(X).to_dense(), 0.0) + noise * torch.eye(len(X))
            K_new = torch.where(new.unsqueeze(-1) == own, trees.covar_module(X_new, X).to_dense(), 0.0)
            residual = y - trees.mean_module.constant
            a = torch.linalg.solve(K, residual)
            evidences.append(-0.5 * (residual @ a + torch.logdet(K) + len(X) * math.log(2 * math.pi)))
            means.append(trees.mean_module.constant + K_new @ a)
            prior = trees.covar_module.outputscale
            variances.append(prior - (K_new * torch.linalg.solve(K, K_new.mT).mT).sum(-1))
    return torch.stack(evidences), torch.stack(means), torch.stack(variances)


# Partitions.


def test_every_leaf_is_small_and_every_row_is_in_one(table: tuple[Tensor, Tensor]) -> None:
    X, _ = table
    for leaf_size in (1, 3, 20):
        partitions = partitions_of(X, leaf_size=leaf_size)
        leaves = partitions.route(X)
        counts = torch.bincount(leaves.reshape(-1), minlength=partitions.n_leaves)
        assert int(counts.sum()) == 4 * len(X)
        assert 1 <= int(counts.min()) <= int(counts.max()) <= leaf_size
        assert_close(partitions.tree_of_leaves()[leaves], torch.arange(4).unsqueeze(-1).expand(4, len(X)))


def test_splits_are_at_thresholds_along_one_input(table: tuple[Tensor, Tensor]) -> None:
    X, _ = table
    partitions = partitions_of(X, 1, 10)
    j, threshold = int(partitions.feature[0]), float(partitions.threshold[0])
    left = partitions.route(X)[0] == partitions.route(X)[0][X[:, j].argmin()]
    if partitions.n_leaves == 2:
        assert torch.equal(left, X[:, j] <= threshold)
    assert float(X[:, j].min()) <= threshold < float(X[:, j].max())


def test_without_randomness_cells_are_halved(normal) -> None:
    leaves = partitions_of(normal(64, 1), 1, 8, randomness=0.0).route(normal(0, 1))
    assert leaves.shape == (1, 0)
    X = normal(64, 1)
    assert torch.bincount(partitions_of(X, 1, 8, randomness=0.0).route(X)[0]).tolist() == [8] * 8


def test_repeated_rows_stay_together_and_end_the_splitting() -> None:
    X = torch.ones(30, 2, dtype=torch.float64)
    assert partitions_of(X, 2, 4).n_leaves == 2
    X[20:, 1] = 3.0
    leaves = partitions_of(X, 2, 4).route(X)
    assert leaves.tolist() == [[0] * 20 + [1] * 10, [2] * 20 + [3] * 10]


def test_a_seed_fixes_the_partitions(table: tuple[Tensor, Tensor]) -> None:
    X, _ = table
    first, again = partitions_of(X), partitions_of(X)
    assert torch.equal(first.threshold, again.threshold)
    other = RandomPartitions.draw(X, 4, leaf_size=6, seed=1)
    assert not torch.equal(first.route(X), other.route(X))


# The mixture.


def test_evidence_weights_and_prediction_equal_brute_force(trees: TreeMixture, normal) -> None:
    X_new = 2 + 2 * normal(9, 2)
    evidences, means, variances = brute_force(trees, X_new)
    assert_close(trees.log_evidences().detach(), evidences, rtol=1e-9, atol=1e-9)
    assert_close(trees.log_marginal_likelihood().detach(), (evidences.exp().mean()).log(), rtol=1e-9, atol=1e-9)
    weights = evidences.softmax(-1)
    assert_close(trees.weights(), weights, rtol=1e-8, atol=1e-12)
    predictive = trees.predictive(X_new)
    kept = weights > 1e-9
    assert_allclose(predictive.weights, (weights[kept] / weights[kept].sum()).expand(9, -1), rtol=1e-8)
    assert_allclose(predictive.component_means, means[kept].mT, rtol=1e-8, atol=1e-9)
    assert_allclose(predictive.component_variances, variances[kept].mT + 0.02, rtol=1e-7)
    latent = trees.predictive(X_new, include_noise=False)
    assert_allclose(predictive.component_variances - latent.component_variances, 0.02, rtol=1e-8)


def test_one_leaf_is_the_exact_gp(table: tuple[Tensor, Tensor], normal) -> None:
    X, y = table
    trees, X_new = TreeMixture(X, y, partitions_of(X, 3, 20)), normal(5, 2)
    gp = ExactGP(X, y, kernel=trees.covar_module, mean=trees.mean_module, noise=trees.likelihood)
    assert_close(trees.log_marginal_likelihood(), gp.log_marginal_likelihood(), rtol=1e-9, atol=1e-9)
    mean, variance = gp.marginals(X_new)
    predictive = trees.predictive(X_new, include_noise=False)
    assert_allclose(predictive.mean, mean.detach().numpy(), rtol=1e-8, atol=1e-9)
    assert_allclose(predictive.variance, variance.detach().numpy(), rtol=1e-7)
    assert_close(trees.covariance(X_new), gp.latent(X_new)[1].detach(), rtol=1e-7, atol=1e-9)


def test_the_evidence_passes_gradients_to_all_hyperparameters(trees: TreeMixture) -> None:
    trees.log_marginal_likelihood().backward()
    for parameter in trees.parameters():
        before, h = parameter.detach().clone(), 1e-5
        for i in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                parameter.data.view(-1)[i] = before.view(-1)[i] + sign * h
                values.append(float(trees.log_marginal_likelihood().detach()))
            parameter.data.copy_(before)
            assert float(parameter.grad.view(-1)[i]) == pytest.approx(
                (values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-6
            )


def test_joint_draws_have_the_moments_of_the_mixture(trees: TreeMixture, normal, generator) -> None:
    X_new, n = 2 + 2 * normal(4, 2), 20_000
    trees.requires_grad_(False)
    samples = trees.draw(X_new, n, generator=generator)
    predictive = trees.predictive(X_new)
    mean = torch.from_numpy(predictive.mean)
    assert bool(((samples.mean(0) - mean).abs() < 4 * samples.std(0) / n**0.5).all())
    products = (samples - mean).unsqueeze(-1) * (samples - mean).unsqueeze(-2)
    wanted = trees.covariance(X_new) + 0.02 * torch.eye(4, dtype=torch.float64)
    assert bool(((products.mean(0) - wanted).abs() < 4 * products.std(0) / n**0.5 + 1e-12).all())
    assert_allclose(wanted.diagonal().numpy(), predictive.variance, rtol=1e-7)


def test_fitting_raises_the_evidence_and_finds_the_partition_that_splits_at_a_jump() -> None:
    X = torch.linspace(-1.5, 1.5, 60, dtype=torch.float64).unsqueeze(-1)
    y = torch.where(X > 0.4, 1.0, -1.0).squeeze(-1) + 0.05 * torch.sin(40 * X).squeeze(-1)
    trees = TreeMixture(X, y, partitions_of(X, 64, 30))
    before = float(trees.log_marginal_likelihood().detach())
    report = fit_tree_mixture(trees)
    assert float(trees.log_marginal_likelihood().detach()) > before
    assert report.converged
    best = int(trees.weights().argmax())
    inside = trees.partitions.route(X)[best]
    either = torch.nonzero(X.squeeze(-1) > 0.4)[0].item()
    distance = [abs(i - either) for i in range(1, 60) if inside[i] != inside[i - 1]]
    assert min(distance) <= 1


def test_a_kernel_of_another_kind_is_refused_by_name(table: tuple[Tensor, Tensor]) -> None:
    X, y = table
    for kernel, text in ((RBFKernel(), "got RBFKernel"), (ScaleKernel(LinearKernel()), "ScaleKernel of LinearKernel")):
        with pytest.raises(UnsupportedKernelError, match=text):
            TreeMixture(X, y, partitions_of(X), kernel=kernel)
    for kernel in (ScaleKernel(RBFKernel()), ScaleKernel(MaternKernel(nu=0.5))):
        assert len(TreeMixture(X, y, partitions_of(X), kernel=kernel).predictive(X)) == 20


# The front door.


@parametrize_with_checks([TreeMixtureRegressor(n_partitions=4, leaf_size=20, random_state=0)])
def test_scikit_learns_contract_is_kept(estimator, check) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def steps() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.uniform(0, 10, (80, 1))
    return X, 5.0 * (X[:, 0] > 4) + np.sin(X[:, 0]) + 0.2 * rng.standard_normal(80)


def test_saved_and_loaded_it_predicts_the_same(steps, tmp_path) -> None:
    X, y = steps
    kernel = ScaleKernel(MaternKernel(nu=1.5))
    model = TreeMixtureRegressor(6, 20, kernel, noise=0.04, random_state=3).fit(X, y)
    model.save(tmp_path / "model")
    loaded = gpmoe.load(tmp_path / "model")
    assert_array_equal(loaded.predict_dist(X).component_means, model.predict_dist(X).component_means)
    assert_array_equal(loaded.partition_weights_, model.partition_weights_)
    assert loaded.get_params().keys() == model.get_params().keys()
    assert loaded.noise == 0.04
    assert_array_equal(loaded.sample_y(X[:5], 3), model.sample_y(X[:5], 3))


def test_damaged_partitions_are_not_loaded(steps, tmp_path, monkeypatch) -> None:
    model = TreeMixtureRegressor(2, 40, random_state=3).fit(*steps)
    data, tensors = model.to_parts()
    for name in ("left", "feature", "roots"):
        spoiled = {
            **tensors,
            f"partitions.{name}": torch.zeros_like(tensors[f"partitions.{name}"]) + 7 * (name != "left"),
        }
        monkeypatch.setattr(model, "to_parts", lambda spoiled=spoiled: (data, spoiled))
        io.save(model, tmp_path / "model")
        with pytest.raises(FileFormatError, match="don't fit together"):
            gpmoe.load(tmp_path / "model")


def test_a_seed_fixes_the_fit_and_units_change_nothing(steps) -> None:
    X, y = steps
    model = TreeMixtureRegressor(6, 20, random_state=3).fit(X, y)
    assert_array_equal(TreeMixtureRegressor(6, 20, random_state=3).fit(X, y).predict(X), model.predict(X))
    other = TreeMixtureRegressor(6, 20, random_state=3).fit(1e3 * X + 5, -40 * y + 7)
    assert_allclose((other.predict(1e3 * X + 5) - 7) / -40, model.predict(X), rtol=1e-3, atol=1e-3)


def test_covariance_agrees_with_the_standard_deviation(steps) -> None:
    X, y = steps
    model = TreeMixtureRegressor(6, 20, random_state=3).fit(X, y)
    _, std = model.predict(X[:6], return_std=True)
    _, covariance = model.predict(X[:6], return_cov=True)
    assert_allclose(np.sqrt(np.diag(covariance)), std, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"n_partitions": 0}, "`n_partitions` must be a whole number of at least 1; got 0"),
        ({"leaf_size": 2.5}, "`leaf_size` must be a whole number of at least 1; got 2.5"),
        ({"randomness": 2.0}, "`randomness` must lie between 0 and 1; got 2.0"),
        ({"noise": -1.0}, "`noise` is a variance and must be positive"),
    ],
)
def test_wrong_arguments_are_named(steps, arguments: dict, text: str) -> None:
    with pytest.raises(InputError, match=text):
        TreeMixtureRegressor(**arguments).fit(*steps)


def test_a_constant_target_and_a_single_row_are_taken() -> None:
    X = np.arange(12.0).reshape(-1, 1)
    assert_allclose(TreeMixtureRegressor(2, 4, random_state=0).fit(X, np.full(12, 3.0)).predict(X), 3.0, atol=1e-3)
    assert np.isfinite(TreeMixtureRegressor(2, 4, random_state=0).fit(X[:1], [2.0]).predict(X)).all()


@pytest.mark.skipif(not (DATA / "regdata" / "jump1d.csv").exists(), reason="needs the data folder, ../shared/data")
def test_on_the_jump_it_is_better_than_one_gp() -> None:
    x, y = np.loadtxt(DATA / "regdata" / "jump1d.csv", delimiter=",", skiprows=1, unpack=True)
    differences = []
    order = np.random.default_rng(0).permutation(len(x))
    for fold in range(5):
        test = np.isin(np.arange(len(x)), order[fold::5])
        scores = [
            model.fit(x[~test, None], y[~test]).log_score(x[test, None], y[test])
            for model in (TreeMixtureRegressor(64, 40, random_state=0), GPRegressor())
        ]
        differences.append(scores[0] - scores[1])
    assert np.mean(differences) > 0
    assert np.mean(differences) > 2 * np.std(differences, ddof=1) / np.sqrt(5)
