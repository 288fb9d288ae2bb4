"""Local Gaussian processes, each on a part of the rows, whose posteriors are combined at every new point.

| symbol | name in code | shape |
|---|---|---|
| X, y of all experts, one after another | `X`, `y` | (n, d), (n,) |
| latent means, less the prior mean, and variances of the experts that answer | `means`, `variances` | (q, k) |
"""

import math

import numpy as np
import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.means import ConstantMean
from torch import Tensor

from gpmoe.errors import InputError, ShapeError
from gpmoe.kernels.dimension_scaled import dimension_scaled_matern
from gpmoe.models import aggregation as rules
from gpmoe.models.aggregation import Aggregation, expect_rule
from gpmoe.models.clique_tree import clique_tree
from gpmoe.models.correlated_experts import CorrelatedExperts, correlated_experts
from gpmoe.models.exact_gp import evaluating, expect_data
from gpmoe.models.expert_joint import lent_covariance, posterior_covariance
from gpmoe.models.expert_layout import ExpertLayout, Indices
from gpmoe.models.expert_moments import (
    Hyperparameters,
    Questions,
    expect_supported,
    log_likelihoods,
    moments,
)
from gpmoe.models.gaussian_model import LearnableModel, expect_inputs
from gpmoe.models.gaussian_noise import gaussian_noise
from gpmoe.models.nested_kriging import nested_kriging
from gpmoe.shapes import expect_shape

_PAIRS = 2**19  # of points and experts at a time
_ROWS = 2**16  # checked at a time


class LocalExperts(LearnableModel):
    """M exact Gaussian processes on parts of the rows, and a rule that combines their latent posteriors.

    Every rule works on the latent function and the noise variance is added once. "grbcm" (enhanced experts that share
    the rows of a communication expert; its variance tends to the right one as rows grow), "cpoe" (correlated experts,
    each given C - 1 others and all data through them; C = M is the exact process) and "nested" (the best linear
    combination, O(n²) a point) know that experts' errors are dependent. "minimum_variance" is a strong baseline;
    "gpoe_softmax" and "barycentre" vote by exp(-100 σ_i²/prior). "poe", "bcm" and "rbcm" are too sure of themselves
    where experts agree, "gpoe" is too unsure: for comparison.

    Args:
        X: inputs, ``(n, d)``, sorted by expert.
        y: targets, ``(n,)``.
        layout: whose rows are whose, and who answers where.
        aggregation: the rule.
        degree: C of "cpoe", at most M.
        kernel: any GPyTorch kernel; with batch shape ``(M,)`` each expert has its own hyperparameters (RBF, Matérn and
            rational quadratic, scaled or not). Matérn-5/2 with a lengthscale per input if None.
        noise: the noise variance; None to learn it (at least 1e-6).

    Attributes:
        covar_module, mean_module, likelihood: the GPyTorch parts: kernel, constant mean, Gaussian noise.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if X, y and layout don't fit each other.
        InputError: for another rule, or one that needs experts of the same hyperparameters where they have their own.

    Example:
        >>> import numpy as np, torch
        >>> from gpmoe.models.partition import partition_rows
        >>> X = torch.linspace(0, 6, 60, dtype=torch.float64).unsqueeze(-1)
        >>> regions, labels = partition_rows(X.numpy(), 3)
        >>> layout = ExpertLayout(np.array([0, 20, 40, 60]), X[10::20].numpy(), regions, np.arange(0, 60, 6))
        >>> model = LocalExperts(X, X.sin().squeeze(-1), layout, noise=1e-4)
        >>> mean, variance = model.marginals(X[:3] + 0.05)
        >>> bool((mean - (X[:3, 0] + 0.05).sin()).abs().max() < 0.01)
        True
    """

    X: Tensor
    y: Tensor
    covar_module: Kernel
    mean_module: ConstantMean
    likelihood: GaussianLikelihood

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        layout: ExpertLayout,
        *,
        aggregation: Aggregation = "grbcm",
        degree: int = 2,
        kernel: Kernel | None = None,
        noise: float | None = None,
    ) -> None:
        super().__init__()
        _expect_rows(X, y, int(layout.offsets[-1]))
        self.register_buffer("X", X)
        self.register_buffer("y", y)
        self.layout = layout
        self.covar_module = (dimension_scaled_matern(X.shape[-1]) if kernel is None else kernel).to(X)
        batch = self.covar_module.batch_shape
        if batch not in (torch.Size(), torch.Size([layout.n_experts])):
            raise ShapeError(f"`kernel` must have batch shape () or ({layout.n_experts},); got {tuple(batch)}.")
        self.mean_module = ConstantMean(batch_shape=batch).to(X)
        self.likelihood = gaussian_noise(noise, batch).to(X)
        self.combine_by(aggregation, degree)
        self._correlated: tuple[Tensor, CorrelatedExperts, Indices] | None = None

    def combine_by(self, aggregation: Aggregation, degree: int = 2) -> None:
        """Take another rule; experts and hyperparameters stay as they are."""
        expect_rule(aggregation, shared=not self.covar_module.batch_shape)
        if degree < 1:
            raise InputError(f"`degree` must be at least 1; got {degree}.")
        expect_supported(self._hyper())
        self.aggregation, self.degree = aggregation, min(degree, self.layout.n_experts)
        self._correlated = None

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave conditioned cliques behind; they are computed again when needed."""
        return {**self.__dict__, "_correlated": None}

    @property
    def batch_shape(self) -> torch.Size:
        """None: ``()``."""
        return torch.Size()

    @property
    def solved_by(self) -> str:
        """How many experts there are, for reports."""
        return f"{self.layout.n_experts} local experts, {self.aggregation}"

    def extra_repr(self) -> str:
        """What `repr` says beside the parts."""
        return f"n={len(self.y)}, {self.solved_by}"

    def new_noise(self) -> Tensor:
        """Noise variance of a new observation, ``(1,)``: the mean over experts where each has its own."""
        noise: Tensor = self.likelihood.noise
        return noise.mean().reshape(1)

    def log_marginal_likelihood(self) -> Tensor:
        """Σ_i log N(y_i | m, K_i + σ²I), experts taken as independent; a scalar, nats, differentiable once."""
        return log_likelihoods(self.X, self.y, torch.from_numpy(self.layout.offsets), self._hyper())[0].sum()

    def jitter_needed(self) -> float:
        """The most that any expert's covariance needs on its diagonal to have a factor."""
        with torch.no_grad(), evaluating(self):
            return log_likelihoods(self.X, self.y, torch.from_numpy(self.layout.offsets), self._hyper())[1]

    def log_evidence(self) -> float:
        """log q(y) of the correlated product of the present degree, nats; exact where C = M."""
        return self._cliques()[0].log_evidence

    def _hyper(self) -> Hyperparameters:
        noise = self.likelihood.noise.squeeze(-1)
        return Hyperparameters(self.covar_module, self.mean_module.constant, noise)

    def marginals(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Combined posterior mean and variance of the latent function at each new point, in bounded memory.

        Args:
            X: ``(m, d)``; any number of points.

        Returns:
            Mean and variance, ``(m,)`` each. Not differentiable.
        """
        return self.answers(X)[:2]

    def answers(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `marginals`, with the noise variance of an observation at each point, ``(m,)``."""
        expect_inputs(X, self.X)
        if X.dim() != 2:
            raise ShapeError(f"`X` must have shape (m, d); got {tuple(X.shape)}.")
        with torch.no_grad(), evaluating(self):
            if self.aggregation == "nested":
                hyper = self._hyper()
                offsets = torch.from_numpy(self.layout.offsets)
                shift, variance = nested_kriging(hyper.kernel, self.X, self.y - hyper.mean, hyper.noise, offsets, X)
                return hyper.mean + shift, variance, hyper.noise.expand(len(X))
            experts = self._answering(X)
            order = np.argsort(experts[:, 0], kind="stable")  # points of one region together ask few experts
            result = X.new_empty(3, len(X))
            size = max(1, _PAIRS // experts.shape[1])
            for start in range(0, len(X), size):
                rows = torch.from_numpy(order[start : start + size])
                result[:, rows] = torch.stack(self._combined(X[rows], experts[rows.numpy()]))
        return result[0], result[1], result[2]

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `GaussianModel.latent`; differentiable in X unless the rule is "nested".

        Means and variances are those of `marginals`. Between points, experts lend the correlations of their own
        posteriors, each in proportion to its share in both points (see `expert_joint`).
        """
        expect_inputs(X, self.X)
        flat = X.reshape(-1, X.shape[-1])
        with evaluating(self):
            if self.aggregation == "nested":
                mean, variance, _ = self.answers(flat.detach())
            else:
                mean, variance, _ = self._combined(flat, self._answering(flat))
            mean, variance = mean.reshape(X.shape[:-1]), variance.reshape(X.shape[:-1])
            if X.shape[-2] == 1:
                return mean, variance.unsqueeze(-1)
            groups = zip(X.reshape(-1, *X.shape[-2:]), variance.reshape(-1, X.shape[-2]), strict=True)
            covariance = torch.stack([self._joint(points, each) for points, each in groups])
        return mean, covariance.reshape(*X.shape[:-1], X.shape[-2])

    def _joint(self, X: Tensor, variance: Tensor) -> Tensor:
        """Covariance of q points whose variances are known, ``(q, q)``."""
        experts, hyper = self._answering(X), self._hyper()
        _, variances = self._moments(X, experts, hyper)
        prior = self._prior(X)
        priors = prior.unsqueeze(-1).expand(variances.shape) if hyper.shared else prior[torch.from_numpy(experts)]
        power = self.degree * math.log(len(self.y) + 1) if self.aggregation == "cpoe" else 1.0
        shares = rules.entropy_power_votes(variances, priors, power)
        if self.aggregation == "cpoe":
            correlated = self._cliques()[0]
            each = [correlated.covariance(hyper.kernel, self.X, int(i), X) for i in np.unique(experts)]
        else:
            enhanced = self.aggregation == "grbcm"
            rows = [self.layout.rows_of(np.array([i]), with_communication=enhanced)[0] for i in np.unique(experts)]
            each = [
                posterior_covariance(self.X[torch.from_numpy(part)], *hyper.single(int(i))[:2], X)
                for i, part in zip(np.unique(experts), rows, strict=True)
            ]
        return lent_covariance(variance, shares, experts, each)

    def _answering(self, X: Tensor) -> Indices:
        """Experts, or cliques of a correlated product, that answer for each point, ``(m, k)``."""
        nearest = self.layout.nearest(X.detach().numpy())
        return self._cliques()[1][nearest[:, 0]] if self.aggregation == "cpoe" else nearest

    def _combined(self, X: Tensor, experts: Indices) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and noise from the experts given, ``(q,)`` each."""
        hyper = self._hyper()
        level = hyper.mean.mean()
        means, variances = self._moments(X, experts, hyper)
        means = means - level
        prior = self._prior(X)
        index = torch.from_numpy(experts)
        priors = prior.unsqueeze(-1).expand(means.shape) if hyper.shared else prior[index]
        if hyper.shared:
            noise = hyper.noise.expand(len(X))
        else:
            noise = (rules.entropy_power_votes(variances, priors, 1.0) * hyper.noise[index]).sum(-1)
        if experts.shape[1] == 1:  # one expert is right alone, also where its vote would not be 1
            return level + means.squeeze(-1), variances.squeeze(-1), noise
        mean, variance = self._aggregate(X, means, variances, priors, level)
        return level + mean, variance, noise

    def _prior(self, X: Tensor) -> Tensor:
        """Prior variance at each point ``(q,)``, or of each expert ``(M,)`` with hyperparameters of its own."""
        if self.covar_module.batch_shape:
            return self.covar_module(self.X[:1], diag=True).squeeze(-1)
        return self.covar_module(X, diag=True)

    def _moments(self, X: Tensor, experts: Indices, hyper: Hyperparameters) -> tuple[Tensor, Tensor]:
        """Each answering expert's latent mean and variance, ``(q, k)``."""
        questions = Questions(X, experts)
        if self.aggregation == "cpoe":
            correlated = self._cliques()[0]
            pieces = [
                correlated.posterior(hyper.kernel, self.X, clique, points)
                for clique, points in zip(questions.asked.tolist(), questions.by_expert(), strict=True)
            ]
            shift, variance = (torch.cat(piece) for piece in zip(*pieces, strict=True))
            return hyper.mean + questions.answer(shift), questions.answer(variance)
        rows, offsets = self.layout.rows_of(questions.asked, with_communication=self.aggregation == "grbcm")
        return moments(self.X, self.y, rows, offsets, hyper, questions.asked, questions)

    def _aggregate(
        self, X: Tensor, means: Tensor, variances: Tensor, priors: Tensor, level: Tensor
    ) -> tuple[Tensor, Tensor]:
        prior = priors.mean(-1)
        match self.aggregation:
            case "grbcm":
                base_mean, base_variance = self._communicated(X)
                return rules.generalised_robust_committee(means, variances, base_mean - level, base_variance)
            case "cpoe":
                power = self.degree * math.log(len(self.y) + 1)
                votes = rules.entropy_power_votes(variances, priors, power)
                return rules.product_of_experts(means, variances, votes)
            case "bcm":
                return rules.committee_machine(means, variances, priors, prior)
            case "rbcm":
                votes = rules.differential_entropy_votes(variances, priors)
                return rules.committee_machine(means, variances, priors, prior, votes)
            case "minimum_variance":
                return rules.minimum_variance(means, variances)
            case "barycentre":
                return rules.wasserstein_barycentre(means, variances, rules.softmax_votes(variances, priors))
            case "poe":
                return rules.product_of_experts(means, variances)
            case "gpoe":
                return rules.product_of_experts(means, variances, rules.uniform_votes(variances))
            case _:
                return rules.product_of_experts(means, variances, rules.softmax_votes(variances, priors))

    def _communicated(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """The communication expert's latent mean and variance, ``(q,)``."""
        rows, hyper = self.layout.communication, self._hyper()
        if not len(rows):
            return hyper.mean.expand(len(X)), self._prior(X)
        questions = Questions(X, np.zeros((len(X), 1), dtype=np.int64))
        offsets = np.array([0, len(rows)])
        mean, variance = moments(self.X, self.y, rows, offsets, hyper, questions.asked, questions)
        return mean.squeeze(-1), variance.squeeze(-1)

    def _cliques(self) -> tuple[CorrelatedExperts, Indices]:
        """The conditioned cliques and those that answer in each expert's region, at the present parameters."""
        now = torch.cat([tensor.detach().reshape(-1) for tensor in self.parameters()])
        if self._correlated is None or not torch.equal(self._correlated[0], now):
            with torch.no_grad(), evaluating(self):
                tree = clique_tree(self.layout.centers, self.degree)
                hyper = self._hyper()
                offsets = torch.from_numpy(self.layout.offsets)
                found = correlated_experts(hyper.kernel, self.X, self.y - hyper.mean, float(hyper.noise), offsets, tree)
            self._correlated = (now, found, tree.answering_near(self.layout.neighbours))
        return self._correlated[1], self._correlated[2]


def _expect_rows(X: Tensor, y: Tensor, n: int) -> None:
    """Check rows in blocks, since they may lie in a file."""
    expect_shape("X", X, ndim=2, last=(n, -1))
    expect_shape("y", y, ndim=1, last=(n,))
    for start in range(0, n, _ROWS):
        expect_data(X[start : start + _ROWS], y[start : start + _ROWS], None)
