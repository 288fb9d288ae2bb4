"""Mixtures of exact GP experts by Pyro: NUTS as the reference for small data, and variational inference.

The assignments are summed out for each point, and the experts' functions are whitened:

    log p(y, u, θ, β) = sum_n log sum_k π_k(x_n; β) N(y_n; f_k(x_n), σ_k²) + sum_k log N(u_k; 0, I) + log priors
    f_k = m_k + L_k u_k,  L_k L_k' = K_k(θ_k)

| symbol | name in code | shape |
|---|---|---|
| u_k, whitened function at the training points | `"u"` | (k, n) |
| θ, hyperparameters that have a prior, unconstrained | `"experts.0.covar_module.raw_outputscale"`, ... | |
| β, log-weights of the gate | `"gate"` | (d + 1, k) or (k,) |

Pyro is imported where it is used, runs on torch's generator inside `fork_rng`, and its parameters stay in a scope.

Source: Hoffman and Gelman (2014) for NUTS; Kucukelbir et al. (2017) for the guides.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, get_args

import gpytorch
import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.func import functional_call

from gpmoe.distributions import Predictive
from gpmoe.errors import InputError, UnsupportedKernelError
from gpmoe.gates.constant import ConstantGate
from gpmoe.gates.softmax import SoftmaxGate
from gpmoe.models.exact_gp import ExactGP
from gpmoe.models.gaussian_model import expect_inputs
from gpmoe.models.mixture_of_experts import MixtureOfExperts

Guide = Literal["normal", "multivariate_normal", "delta"]
Values = dict[str, Tensor]

_MOST_ROWS = 200  # a leapfrog step costs k factorisations, and the posterior has k n dimensions and more
_FEWEST_DRAWS = 4  # of fewer, Pyro's diagnostics are not defined
_JITTER = 1e-8  # of the outputscale, so that a smooth kernel's covariance has a factor


@dataclass(frozen=True)
class MixtureDraws:
    """Draws from the posterior of a mixture of experts.

    Attributes:
        values: unconstrained values by the names above, each with the draws in front, ``(s, ...)``.
        target: the density that was drawn from.
        elbo: the evidence lower bound at the end, nats, NaN for NUTS and a delta guide.
        elbo_error: its Monte Carlo standard error.
        divergences: how many of NUTS's draws ended a divergent path, 0 for variational inference.
    """

    values: Values
    target: "CollapsedMixture"
    elbo: float = math.nan
    elbo_error: float = math.nan
    divergences: int = 0

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def predictive(self, X: Tensor, *, include_noise: bool = True) -> Predictive:
        """The posterior predictive: a mixture over draws and experts.

        Args:
            X: ``(m, d)``.
            include_noise: p(y | data) if True, p(f | data) if not.

        Returns:
            A mixture of s k Gaussians at each point.
        """
        expect_inputs(X, self.target.moe.X)
        parts = []
        with torch.no_grad():
            for s in range(len(self)):
                parts.append(self.target.conditional({name: v[s] for name, v in self.values.items()}, X))
        probs, means, variances = (torch.cat(part, -1) for part in zip(*parts, strict=True))
        if not include_noise:
            noises = [self.target.noises({name: v[s] for name, v in self.values.items()}) for s in range(len(self))]
            variances = (variances - torch.cat(noises)).clamp_min(1e-12)
        return Predictive.mixture((probs / len(self)).numpy(), means.detach().numpy(), variances.detach().numpy())


class CollapsedMixture:
    """The log joint density of a mixture of exact GP experts with the assignments summed out.

    Every hyperparameter that has a prior is a random variable; the others stay where the model has them. The gate's
    weights have the prior of the gate: normal for `SoftmaxGate`, Dirichlet for `ConstantGate`.

    Args:
        moe: gives data, kernels, means, noises, gate and where to start: the functions at its posterior means.
        priors: further priors, or others, by the name of an expert's parameter: ``{"likelihood.noise_covar.noise":
            LogNormal(-2.0, 1.0)}``, for the value itself and for every expert; "gate" for the gate's weights.

    Raises:
        InputError: for another gate, or a prior for a parameter that is not there.
        UnsupportedKernelError: for a registered prior whose parameter can't be found by its name.
    """

    def __init__(self, moe: MixtureOfExperts, priors: Mapping[str, Distribution] | None = None) -> None:
        if type(moe.gate) not in (SoftmaxGate, ConstantGate):
            raise InputError(f"the gate must be a SoftmaxGate or a ConstantGate; got {type(moe.gate).__name__}.")
        self.moe = deepcopy(moe).requires_grad_(False)
        given = dict(priors or {})
        self.gate_prior = given.pop("gate", None)
        self.priors: dict[str, Distribution] = {}
        for k, expert in enumerate(self.moe.all_experts):
            for name, prior in {**_registered_priors(expert), **given}.items():
                self.priors[f"experts.{k}.{_raw(expert, name)}"] = prior
        with torch.no_grad():  # covariances without random hyperparameters are factorised once
            fixed = [k for k in range(moe.n_experts) if not any(n.startswith(f"experts.{k}.cov") for n in self.priors)]
            self._fixed = {k: self._factorise(k, {}) for k in fixed}

    def start(self) -> Values:
        """Unconstrained values at the model's present state."""
        moe = self.moe
        raw = dict(moe.named_parameters())
        values = {name: raw[name].detach().clone() for name in self.priors}
        with torch.no_grad():
            whitened = []
            for k, expert in enumerate(moe.all_experts):
                mean = expert.mean_module(moe.X)
                posterior, _ = expert.marginals(moe.X)
                residual = (posterior - mean).unsqueeze(-1)
                whitened.append(torch.linalg.solve_triangular(self._factor(k, values), residual, upper=False))
            values["u"] = torch.cat(whitened, -1).mT.contiguous()
        if moe.n_experts > 1:
            gate: Any = moe.gate
            values["gate"] = (gate.logits if isinstance(gate, ConstantGate) else gate.weights).detach().clone()
        return values

    def log_joint(self, values: Values) -> Tensor:
        """log p(y, u, θ, β) at unconstrained values, with the Jacobians of the constraints; a scalar in nats."""
        moe = self.moe
        f = torch.stack([self._function(k, values) for k in range(moe.n_experts)], -1)
        noise = self.noises(values)
        log_density = -0.5 * ((2 * math.pi * noise).log() + (moe.y.unsqueeze(-1) - f).square() / noise)
        log_likelihood = torch.logsumexp(log_density + self._log_gate(values, moe.X), -1).sum()
        u = values["u"]
        log_prior = -0.5 * (u.square().sum() + u.numel() * math.log(2 * math.pi))
        return log_likelihood + log_prior + self._log_prior_of_gate(values) + self._log_priors(values)

    def noises(self, values: Values) -> Tensor:
        """σ_k², ``(k,)``."""
        return torch.cat([self._call(k, values, _noise_of).reshape(-1)[:1] for k in range(self.moe.n_experts)])

    def conditional(self, values: Values, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gate, means and predictive variances of y at X ``(m, d)`` given one draw, ``(m, k)`` each."""
        means, variances = [], []
        for k in range(self.moe.n_experts):
            L = self._factor(k, values)
            cross = self._call(k, values, lambda expert: _covariance(expert, self.moe.X, X))
            prior = self._call(k, values, lambda expert: expert.covar_module(X, diag=True))
            V = torch.linalg.solve_triangular(L, cross, upper=False)
            means.append(self._call(k, values, lambda expert: expert.mean_module(X)) + V.mT @ values["u"][k])
            variances.append((prior - V.square().sum(0)).clamp_min(0.0))
        noise = self.noises(values)
        return self._log_gate(values, X).exp(), torch.stack(means, -1), torch.stack(variances, -1) + noise

    def _call(self, k: int, values: Values, function: Callable[[ExactGP], Tensor]) -> Tensor:
        """A function of expert k with the given values for its parameters."""
        prefix = f"experts.{k}."
        own = {f"module.{name[len(prefix) :]}": v for name, v in values.items() if name.startswith(prefix)}
        expert = self.moe.all_experts[k]
        return functional_call(_Applied(expert, function), own, ()) if own else function(expert)

    def _factor(self, k: int, values: Values) -> Tensor:
        """L_k, ``(n, n)``."""
        return self._fixed[k] if k in self._fixed else self._factorise(k, values)

    def _factorise(self, k: int, values: Values) -> Tensor:
        K = self._call(k, values, lambda expert: _covariance(expert, self.moe.X, self.moe.X))
        scale = K.detach().diagonal().mean()
        return torch.linalg.cholesky(K + _JITTER * scale * torch.eye(len(K), dtype=K.dtype))

    def _function(self, k: int, values: Values) -> Tensor:
        """f_k at the training points, ``(n,)``."""
        mean = self._call(k, values, lambda expert: expert.mean_module(self.moe.X))
        return mean + self._factor(k, values) @ values["u"][k]

    def _log_gate(self, values: Values, X: Tensor) -> Tensor:
        if self.moe.n_experts == 1:
            return X.new_zeros(len(X), 1)
        weights = values["gate"]
        logits = weights.expand(len(X), -1) if weights.dim() == 1 else weights[0] + X @ weights[1:]
        return torch.log_softmax(logits, -1)

    def _log_prior_of_gate(self, values: Values) -> Tensor | float:
        if self.moe.n_experts == 1:
            return 0.0
        weights, gate = values["gate"], self.moe.gate
        if self.gate_prior is not None:
            return self.gate_prior.log_prob(weights).sum()
        if isinstance(gate, SoftmaxGate):
            return 0.5 * (
                weights.numel() * math.log(gate.precision / (2 * math.pi)) - gate.precision * weights.square().sum()
            )
        # Dirichlet(1 + 1/k) on the proportions, in logits: the density times prod π; the free direction is normal.
        k = len(weights)
        alpha = weights.new_full((k,), 1 + 1 / k)
        log_pi = torch.log_softmax(weights, -1)
        dirichlet = torch.distributions.Dirichlet(alpha).log_prob(log_pi.exp()) + log_pi.sum()
        total = weights.sum()
        return dirichlet - 0.5 * (total.square() / k + math.log(2 * math.pi)) + 0.5 * math.log(k)

    def _log_priors(self, values: Values) -> Tensor | float:
        terms: list[Tensor] = []
        for name, prior in self.priors.items():
            raw = values[name]
            constraint = self.moe.constraint_for_parameter_name(name)  # type: ignore[operator]
            value = raw if constraint is None else constraint.transform(raw)
            terms.append(prior.log_prob(value).sum())
            if constraint is not None:
                terms.append(_log_slope(constraint, raw).sum())
        return torch.stack(terms).sum() if terms else 0.0


def sample_mixture(
    moe: MixtureOfExperts,
    *,
    n_draws: int = 500,
    n_warmup: int = 500,
    priors: Mapping[str, Distribution] | None = None,
    seed: int = 0,
) -> MixtureDraws:
    """Draw from the posterior of a mixture of experts by the no-U-turn sampler.

    The reference for small data, hundreds to thousands of times slower than `fit_mixture`. The chain starts at the
    model's present state, so fit it first: relabelled experts are other modes, which the chain need not visit.

    Args:
        moe: n <= 200; not changed.
        n_draws: kept, at least 4.
        n_warmup: steps in which step size and metric are adapted, thrown away.
        priors: see `CollapsedMixture`.
        seed: fixes the draws.

    Raises:
        InputError: for more than 200 rows, fewer than 4 draws, and as `CollapsedMixture`.
    """
    n = len(moe.y)
    if n_draws < _FEWEST_DRAWS:
        raise InputError(f"`n_draws` must be at least {_FEWEST_DRAWS}; got {n_draws}.")
    if n > _MOST_ROWS:
        raise InputError(
            f"NUTS is for at most {_MOST_ROWS} rows; got {n}. Use `fit_mixture`, or pass a subset of the rows."
        )
    from pyro.infer import MCMC, NUTS

    target = CollapsedMixture(moe, priors)
    with _pyro(seed):
        kernel = NUTS(potential_fn=lambda values: -target.log_joint(values))
        chain = MCMC(
            kernel, num_samples=n_draws, warmup_steps=n_warmup, initial_params=target.start(), disable_progbar=True
        )
        chain.run()
        values = {name: v.detach() for name, v in chain.get_samples().items()}
        divergences = len(chain.diagnostics()["divergences"]["chain 0"])
    return MixtureDraws(values, target, divergences=divergences)


def fit_variational(
    moe: MixtureOfExperts,
    *,
    guide: Guide = "normal",
    n_draws: int = 500,
    n_steps: int = 2000,
    learning_rate: float = 0.01,
    priors: Mapping[str, Distribution] | None = None,
    seed: int = 0,
) -> MixtureDraws:
    """Fit a variational posterior to a mixture of experts, with any priors, by Pyro, and draw from it.

    Args:
        moe: not changed; its present state is the start.
        guide: "normal" (independent), "multivariate_normal", or "delta" for the posterior mode.
        n_draws: from the fitted guide, and for the bound; a delta guide has one.
        n_steps: of Adam.
        learning_rate: of Adam, which falls tenfold towards the end.
        priors: see `CollapsedMixture`.
        seed: fixes the result.

    Raises:
        InputError: for another guide, and as `CollapsedMixture`.
    """
    if guide not in get_args(Guide):
        raise InputError(f"`guide` must be one of {', '.join(get_args(Guide))}; got {guide!r}.")
    from pyro.infer import SVI, Trace_ELBO
    from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, init_to_value
    from pyro.optim import ClippedAdam

    target = CollapsedMixture(moe, priors)
    start = target.start()
    model = _as_pyro(target, start)
    make: Any = {"normal": AutoNormal, "multivariate_normal": AutoMultivariateNormal, "delta": AutoDelta}[guide]
    with _pyro(seed):
        posterior = make(model, init_loc_fn=init_to_value(values=start))
        optimiser = ClippedAdam({"lr": learning_rate, "lrd": 0.1 ** (1 / max(n_steps, 1))})
        svi = SVI(model, posterior, optimiser, Trace_ELBO())
        for _ in range(n_steps):
            svi.step()
        with torch.no_grad():
            count = 1 if guide == "delta" else n_draws
            draws = [{name: v.detach() for name, v in posterior().items()} for _ in range(count)]
            bounds = [-svi.evaluate_loss() for _ in range(count)]
    values = {name: torch.stack([draw[name] for draw in draws]) for name in start}
    if guide == "delta":
        return MixtureDraws(values, target)
    error = float(np.std(bounds) / math.sqrt(len(bounds)))
    return MixtureDraws(values, target, elbo=float(np.mean(bounds)), elbo_error=error)


def _as_pyro(target: CollapsedMixture, start: Values) -> Callable[[], None]:
    """The density as a Pyro model of unconstrained sites."""
    import pyro
    from pyro.distributions import ImproperUniform
    from pyro.distributions import constraints as supports

    def model() -> None:
        values = {}
        for name, value in start.items():
            support = supports.independent(supports.real, value.dim())
            values[name] = pyro.sample(name, ImproperUniform(support, (), value.shape))
        pyro.factor("log_joint", target.log_joint(values))

    return model


@contextmanager
def _pyro(seed: int) -> Iterator[None]:
    """Pyro on a generator and parameters of its own."""
    import pyro

    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope(), torch.enable_grad():
        torch.manual_seed(seed)
        yield


class _Applied(torch.nn.Module):
    """A function of a module as the call of another, which `functional_call` takes."""

    def __init__(self, module: ExactGP, function: Callable[[ExactGP], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.function = function

    def forward(self) -> Tensor:
        return self.function(self.module)


def _covariance(expert: ExactGP, X1: Tensor, X2: Tensor) -> Tensor:
    return expert.covar_module(X1, X2).to_dense()


def _noise_of(expert: ExactGP) -> Tensor:
    return expert.likelihood.noise


def _registered_priors(expert: ExactGP) -> dict[str, Distribution]:
    """Priors of an expert by the names of their parameters' values."""
    priors = expert.named_priors()  # type: ignore[operator]
    return {name.removesuffix("_prior"): prior for name, _, prior, _, _ in priors}


def _raw(expert: ExactGP, name: str) -> str:
    """The stored parameter behind the name of a value."""
    path, _, last = name.rpartition(".")
    raw = f"{path}.raw_{last}" if path else f"raw_{last}"
    known = dict(expert.named_parameters())
    if raw not in known:
        if name in _registered_priors(expert):
            raise UnsupportedKernelError(f"the prior `{name}_prior` belongs to no parameter `{raw}` of the expert.")
        values = sorted(part.replace("raw_", "") for part in known)
        raise InputError(f"`priors` must name parameters of an expert or 'gate': {', '.join(values)}; got {name!r}.")
    return raw


def _log_slope(constraint: gpytorch.constraints.Interval, raw: Tensor) -> Tensor:
    """log dv/draw of each entry."""
    with torch.enable_grad():
        at = raw if raw.requires_grad else raw.detach().requires_grad_()
        (slope,) = torch.autograd.grad(constraint.transform(at).sum(), at, create_graph=raw.requires_grad)
    return slope.log()
