"""Gaussian process regression whose linear systems are solved iteratively, for more rows than a factor has room for.

| symbol | name in code | shape |
|---|---|---|
| C = K + diag(noise) | `operator` | (n, n), not stored in float64 |
| α = C⁻¹(y - m(X)) | `solution.X` | (n, 1) |
| k = K(X, X_new), S ≈ C⁻¹k, R = k - C S | `B`, `S`, `R` | (n, m) |

Variances need k'C⁻¹k, which is S'k + S'R plus an error of R'C⁻¹R: of second order in the remainder, never negative,
and bounded by what the preconditioner says of it. Solves go on until that bound is a hundredth of the variance, so the
standard deviation is right to half a percent, and errs on the large side.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.means import Mean
from torch import Tensor

from gpmoe.errors import NotConvergedWarning, ShapeError
from gpmoe.linalg.fourier_features import PriorPaths, draw_prior_paths
from gpmoe.linalg.lanczos import Estimate
from gpmoe.linalg.operator import KernelOperator, covariance_times
from gpmoe.linalg.pathwise_likelihood import PathwiseLikelihood, estimated_log_density
from gpmoe.linalg.solution import Solution
from gpmoe.linalg.stationary import dense_covariance
from gpmoe.linalg.systems import LinearSolver, LinearSystem
from gpmoe.models.exact_gp import ExactGP, Noise, evaluating
from gpmoe.models.gaussian_model import LearnableModel, expect_inputs

_COLUMNS = 256  # right-hand sides that are solved for at once
_ACCURACY = 0.01  # largest relative error of a variance
_RESIDUAL = 1e-3  # relative, that such variances ask of solves, about
_ROUNDS = 6  # of solves, each to a smaller tolerance where the last one left too much


@dataclass
class Solved:
    """The system at some parameters, prepared for some number of columns, and its solution for the targets."""

    system: LinearSystem
    solution: Solution
    parameters: Tensor
    columns: int


class IterativeGP(LearnableModel):
    """A Gaussian process with Gaussian noise, as `ExactGP`, that never factorises its covariance.

    Args:
        X: inputs, ``(n, d)``.
        y: targets, ``(n,)``.
        solver: how linear systems are solved, `inference.solver.ConjugateGradients()` for one.
        kernel, mean, noise, weights: see `ExactGP`.

    Attributes:
        exact: the model's parts and data.
        solver: as passed in.

    Raises:
        ShapeError, DtypeError, NonFiniteError: if X and y don't fit each other, or have batch dimensions.

    Example:
        >>> import torch
        >>> from gpmoe.inference.solver import ConjugateGradients
        >>> X = torch.linspace(0, 6, 30, dtype=torch.float64).unsqueeze(-1)
        >>> gp = IterativeGP(X, X.sin().squeeze(-1), solver=ConjugateGradients(), noise=1e-4)
        >>> posterior = gp.posterior(X[:1] + 0.1)
        >>> bool((posterior.mean - (X[:1] + 0.1).sin()).abs() < 0.01)
        True
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        *,
        solver: LinearSolver,
        kernel: Kernel | None = None,
        mean: Mean | None = None,
        noise: Noise = None,
        weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.exact = ExactGP(X, y, kernel=kernel, mean=mean, noise=noise, weights=weights)
        if self.exact.batch_shape:
            raise ShapeError(
                f"`X`, `y` and `kernel` must have no batch dimensions; got {tuple(self.exact.batch_shape)}. "
                "Use ExactGP for batches."
            )
        self.solver = solver
        self._solved: Solved | None = None

    def extra_repr(self) -> str:
        """The solver, for `repr`."""
        return f"solver={self.solver}"

    @property
    def X(self) -> Tensor:  # type: ignore[override]  # kept by the exact model
        """Training inputs, ``(n, d)``."""
        return self.exact.X

    @property
    def y(self) -> Tensor:  # type: ignore[override]
        """Training targets, ``(n,)``."""
        return self.exact.y

    @property
    def weights(self) -> Tensor | None:
        """How many observations each point stands for, ``(n,)``; None for one each."""
        return self.exact.weights

    @property
    def covar_module(self) -> Kernel:
        """The kernel."""
        return self.exact.covar_module

    @property
    def mean_module(self) -> Mean:
        """The prior mean."""
        return self.exact.mean_module

    @property
    def likelihood(self) -> GaussianLikelihood | FixedNoiseGaussianLikelihood:
        """The GPyTorch likelihood."""
        return self.exact.likelihood

    @property
    def batch_shape(self) -> torch.Size:
        """Empty."""
        return torch.Size()

    def __getstate__(self) -> dict[str, object]:
        """Copies and pickles leave solutions behind; they are computed again when needed."""
        return {**self.__dict__, "_solved": None}

    def noise(self) -> Tensor:
        """Noise variance of each training point, ``(n,)``."""
        return self.exact.noise()

    def new_noise(self) -> Tensor:
        """Noise variance of a new observation, ``(1,)``: the mean over the training points where they differ."""
        return self.exact.new_noise()

    def set_data(self, X: Tensor, y: Tensor, weights: Tensor | None = None) -> None:
        """Replace the training data and weights; hyperparameters stay as they are."""
        self.exact.set_data(X, y, weights)
        self._solved = None

    def solved(self) -> Solved:
        """The solution for the targets at the present parameters, computed once for them; see whether it converged."""
        everything = [*self.parameters(), *self.buffers(), self.exact.likelihood.noise]
        parameters = torch.cat([tensor.detach().reshape(-1).to(self.X) for tensor in everything])
        if self._solved is None or not torch.equal(self._solved.parameters, parameters):
            self._solved = None  # its memory is wanted
            with torch.no_grad(), evaluating(self):
                system = self._prepared(_COLUMNS, None)
                solution = system.solve(self._residual()[:, None])
            self._solved = Solved(system, solution, parameters, _COLUMNS)
        return self._solved

    def _prepared(self, columns: int, tolerance: float | None) -> LinearSystem:
        operator = KernelOperator(self.covar_module, self.X, self.noise(), memory=self.solver.memory)
        return self.solver.prepare(operator, columns=columns, tolerance=tolerance)

    def _solved_for(self, columns: int) -> Solved:
        """What is solved, with a system that was prepared for at least so many columns, to a factor of two."""
        solved = self.solved()
        if columns > 2 * solved.columns:
            with torch.no_grad(), evaluating(self):
                solved.system = self._prepared(columns, _RESIDUAL)
            solved.columns = columns
        return solved

    def _residual(self) -> Tensor:
        residual: Tensor = self.y - self.mean_module(self.X)
        return residual

    def latent(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """See `GaussianModel.latent`.

        With S ≈ C⁻¹k held constant, k_new - k'S - S'k + S'CS is right to second order in S and has the right gradient.
        """
        expect_inputs(X, self.X)
        solved = self.solved()
        solved.solution.warn_unless_converged("posterior mean", stacklevel=3)
        alpha = solved.solution.X[:, 0]
        with evaluating(self):
            K_new = dense_covariance(self.covar_module, X, self.X)
            B = K_new.detach().reshape(-1, len(self.X)).mT.contiguous()
            with torch.no_grad():
                prior = self.covar_module(X, diag=True).reshape(-1)
                S, R, _ = self._explain(solved.system, B, prior)
            CS = (B - R).mT.reshape(K_new.shape)
            S = S.mT.reshape(K_new.shape)
            mean = self.mean_module(X) + (K_new @ alpha.unsqueeze(-1)).squeeze(-1)
            half = K_new @ S.mT
            correction = S @ CS.mT
            covariance = dense_covariance(self.covar_module, X, X) - half - half.mT
            covariance = covariance + 0.5 * (correction + correction.mT)
        return mean.expand(covariance.shape[:-1]), covariance

    def marginals(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean and variance of the latent function at each new point, in bounded memory.

        Args:
            X: ``(m, d)``; any number of points.

        Returns:
            Mean and variance, ``(m,)`` each. Not differentiable. The variance is at most 1 % too large.

        Warns:
            NotConvergedWarning: with the residual of the mean or the largest error that a variance may have, where the
                solver did not reach its tolerance.
        """
        expect_inputs(X, self.X)
        solved = self._solved_for(len(X))
        with torch.no_grad(), evaluating(self):
            mean: Tensor = self.mean_module(X).clone()
            variance: Tensor = self.covar_module(X, diag=True).clone()
            mean += covariance_times(self.covar_module, X, self.X, solved.solution.X).squeeze(-1)
            worst = 0.0
            for start in range(0, len(X), _COLUMNS):
                columns = slice(start, start + _COLUMNS)
                B = dense_covariance(self.covar_module, self.X, X[columns]).contiguous()
                S, R, error = self._explain(solved.system, B, variance[columns])
                variance[columns] = _left(variance[columns], B, S, R)
                worst = max(worst, error)
        if solved.solution.converged:
            _warn_about(worst)
        solved.solution.warn_unless_converged("posterior mean", stacklevel=2)
        return mean, variance

    def _explain(self, system: LinearSystem, B: Tensor, prior: Tensor) -> tuple[Tensor, Tensor, float]:
        """Solve for S until each prior variance less what S explains is right to 1 %; S, R and the largest error."""
        solution = system.solve(B, tolerance=0.03)
        for _ in range(_ROUNDS):
            bound = system.inverse_bound(solution.remainder)
            variance = _left(prior, B, solution.X, solution.remainder)
            allowed = _ACCURACY * torch.maximum(variance - bound, 0.05 * variance)
            if bool((bound <= allowed).all()):
                break
            shrink = 0.7 * (allowed / bound.clamp_min(torch.finfo(B.dtype).tiny)).sqrt()
            wanted = solution.residuals * shrink.clamp_max(1.0)
            solution = system.solve(B, start=solution.X, tolerance=wanted)
        error = float((bound / variance).max()) if len(variance) else 0.0
        return solution.X, solution.remainder, error

    def jitter_needed(self) -> float:
        """Zero: nothing is factorised but what preconditions."""
        return 0.0

    def log_marginal_likelihood(self) -> Tensor:
        """An estimate of log p(y | X), nats, whose gradient is an unbiased estimate of its gradient."""
        likelihood = PathwiseLikelihood(
            self.covar_module, self.X, solver=self.solver, generator=torch.Generator(self.X.device).manual_seed(0)
        )
        surrogate = likelihood.surrogate(self._residual(), self.noise())
        return surrogate + (self.estimate_log_marginal_likelihood().value - surrogate.detach())

    def estimate_log_marginal_likelihood(self) -> Estimate:
        """log p(y | X) at the present parameters, nats, with its standard error."""
        solved = self.solved()
        generator = torch.Generator(self.X.device).manual_seed(0)
        with torch.no_grad():
            return estimated_log_density(solved.system, self._residual(), solved.solution, generator=generator)

    def draw_paths(
        self, count: int, *, features: int = 1024, generator: torch.Generator | None = None
    ) -> "PosteriorPaths":
        """Draw functions from the posterior by Matheron's rule: a prior function plus its correction by the data.

        Args:
            count: how many; they cost one solve with as many right-hand sides.
            features: random Fourier features of each prior function.
            generator: for everything random.

        Source: Wilson et al. (2020), eq. 13.
        """
        solved = self.solved()
        prior = draw_prior_paths(self.covar_module, self.X, paths=count, features=features, generator=generator)
        like: dict[str, Any] = {"dtype": self.X.dtype, "device": self.X.device, "generator": generator}
        with torch.no_grad():
            white = torch.randn(len(self.X), count, **like)
            targets = prior.values(self.X) + self.noise().sqrt()[:, None] * white
            solution = solved.system.solve(targets)
        solution.warn_unless_converged("posterior paths", stacklevel=2)
        return PosteriorPaths(self, prior, solved.solution.X - solution.X)


@dataclass(frozen=True)
class PosteriorPaths:
    """Functions drawn from a posterior; any number of predictions costs products only.

    Attributes:
        gp: the model, at the parameters of the draw.
        prior: the prior functions.
        weights: of the training points' covariances, ``(n, paths)``.
    """

    gp: IterativeGP
    prior: PriorPaths
    weights: Tensor

    def __call__(self, X: Tensor) -> Tensor:
        """The functions, without noise, at X ``(m, d)``: ``(paths, m)``."""
        expect_inputs(X, self.gp.X)
        with torch.no_grad():
            update = covariance_times(self.gp.covar_module, X, self.gp.X, self.weights)
            mean: Tensor = self.gp.mean_module(X)
            return (self.prior.values(X) + update).mT + mean


def _left(prior: Tensor, B: Tensor, S: Tensor, R: Tensor) -> Tensor:
    """Variance that is left of the prior's, ``(m,)``, at least its rounding error."""
    explained = (S * (B + R)).sum(0)
    return torch.maximum(prior - explained, prior * torch.finfo(prior.dtype).eps)


def _warn_about(error: float) -> None:
    if error > 2 * _ACCURACY:
        text = f"the solves stopped before a posterior variance was right: it may be {error:.0%} too large"
        warnings.warn(text, NotConvergedWarning, stacklevel=3)
