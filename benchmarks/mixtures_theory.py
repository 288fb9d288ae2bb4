"""Softmax mixtures of linear experts whose truth is known: do estimates converge as fast as theory says?

    p(y | x) = sum_k π_k(x) N(y; a_k x + b_k, σ_k²),     π(x) = softmax(β1 x + β0), of the K largest if sparse

| what | published claim | here |
|---|---|---|
| T1 | exact-specified dense fits: parameters at n^-1/2 | slope of the Voronoi loss D1 |
| T2 | top-1 gates, routes without overlap | slopes of misrouted mass and of the experts' errors |
| T3 | densities at n^-1/2, exact and over-specified | slope of the mean Hellinger distance |
| T4 | with too few active experts the density does not converge | error at 1e5 rows over that at 1e3 |
| T6 | a temperature is singular with a linear gate, not with an activated one | least Fisher eigenvalue |
| T7 | so it is learned at n^-1/2 with the latter alone | RMSE of the temperature |

Sources: Nguyen, Akbarian, Yan and Ho (2024), Statistical perspective of top-K sparse softmax gating mixture of experts;
Nguyen, Akbarian and Ho (2024), Is temperature sample efficient for softmax Gaussian mixture of experts?
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, Figures, Results, Run, Suite, Table
from benchmarks.tables import duration, number, verdict
from gpmoe.gates.activation import ActivationGate
from gpmoe.gates.gate import Gate
from gpmoe.gates.parametric_gate import ParametricGate
from gpmoe.gates.softmax import SoftmaxGate
from gpmoe.gates.top_k import TopKGate
from gpmoe.inference.solver import Cholesky
from gpmoe.inference.vbem import run_em
from gpmoe.models.linear_expert import LinearExpert
from gpmoe.models.mixture_of_experts import MixtureOfExperts

FLAT = 1e-6  # precision of the prior on gate weights, which reach 25 here, and on coefficients
TOLERANCE = 1e-3  # nats by which an iteration of EM must raise the bound to go on
STARTS = 8  # of a fit with more experts than the truth, the best of which, on some rows, goes on
STARTING_ROWS = 2000

DENSE, SPARSE, OVER, FEW = "dense", "top-1", "3 experts, 2 active", "3 experts, 1 active"
FITS = {DENSE: (2, 2, 2), SPARSE: (1, 2, 1), OVER: (2, 3, 2), FEW: (2, 3, 1)}  # the truth's K; the fit's k and K
TANH, LINEAR, FISHER = "tanh temperature", "linear temperature", "Fisher information"
LEAST = {"linear": 1e-12, "tanh": 1e-4, "gelu": 1e-4, "sigmoid": 1e-6}  # eigenvalue: at most, at least for the others


@dataclass(frozen=True)
class LinearMixture:
    """Parameters of k linear experts of one input, and of their gate.

    Attributes:
        offsets, slopes: β0 and β1 of the gate, ``(k,)``.
        a, b: slopes and intercepts of the experts, ``(k,)``.
        noise: their variances, ``(k,)``.
        n_active: K.
    """

    offsets: Tensor
    slopes: Tensor
    a: Tensor
    b: Tensor
    noise: Tensor
    n_active: int

    def logits(self, x: Tensor) -> Tensor:
        """β1 x + β0 of the K largest, -inf elsewhere, ``(n, k)``."""
        full = self.offsets + x.unsqueeze(-1) * self.slopes
        least = full.topk(self.n_active, -1).values[..., -1:]
        return full.masked_fill(full < least, -torch.inf)

    def log_densities(self, x: Tensor, y: Tensor) -> Tensor:
        """log N(y; a_k x + b_k, σ_k²), ``(*batch, k)`` for x and y that broadcast to ``(*batch,)``."""
        residual = y.unsqueeze(-1) - self.a * x.unsqueeze(-1) - self.b
        return -0.5 * (residual.square() / self.noise + (2 * math.pi * self.noise).log())

    def responsibilities(self, x: Tensor, y: Tensor) -> Tensor:
        """Of the experts for observations, ``(n, k)``."""
        return torch.softmax(self.logits(x) + self.log_densities(x, y), -1)

    def draw(self, n: int, generator: torch.Generator, least: float = 0.0, most: float = 1.0) -> tuple[Tensor, Tensor]:
        """n inputs, uniform between bounds, and observations."""
        x = least + (most - least) * torch.rand(n, generator=generator, dtype=torch.float64)
        k = torch.multinomial(torch.softmax(self.logits(x), -1), 1, generator=generator).squeeze(-1)
        noise = torch.randn(n, generator=generator, dtype=torch.float64)
        return x, self.a[k] * x + self.b[k] + self.noise[k].sqrt() * noise

    def at(self, chosen: Tensor, n_active: int) -> "LinearMixture":
        """Experts by their numbers, some repeatedly."""
        parts = (self.offsets, self.slopes, self.a, self.b, self.noise)
        return LinearMixture(*(part[chosen] for part in parts), n_active)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def truth(n_active: int) -> LinearMixture:
    """The two experts of Nguyen et al. (2024), sec. 5; a boundary at x = 0.32."""
    return LinearMixture(
        vector(-8, 0), vector(25, 0), vector(-20, 20), vector(15, -5), vector(0.3, 0.4).square(), n_active
    )


def near(true: LinearMixture, n: int, n_experts: int, n_active: int, generator: torch.Generator) -> LinearMixture:
    """Where EM starts: each expert close to a true one, each true one held by at least one, as published.

    Experts of one cell share its gate weight in random parts, down to one that is never among the K largest: equal
    parts can't give a sparse gate the density of the truth where the set of the K largest changes.
    """
    k = len(true.a)
    extra = torch.randint(k, (n_experts - k,), generator=generator)
    cell = torch.cat([torch.arange(k), extra])
    start = true.at(cell, n_active)
    share = (6 * torch.randn(n_experts, generator=generator, dtype=torch.float64)).exp()
    share = share / torch.zeros(k, dtype=torch.float64).index_add(0, cell, share)[cell]

    def shift() -> Tensor:
        return 0.005 * n**-0.083 * torch.randn(n_experts, generator=generator, dtype=torch.float64)

    noise = start.noise + (0.0005 * n**-0.25 * torch.randn(n_experts, generator=generator, dtype=torch.float64)).abs()
    return LinearMixture(
        start.offsets + share.log() + shift(), start.slopes + shift(), start.a + shift(), start.b + shift(), noise,
        n_active,
    )  # fmt: skip


def estimate(n: int, kind: str, seed: int) -> Figures:
    """One draw of n rows and its fit: loss, distances, routes, and errors of the experts."""
    n_true, k, n_active = FITS[kind]
    generator = torch.Generator().manual_seed(seed)
    true = truth(n_true)
    x, y = true.draw(n, generator)
    starts = [near(true, n, k, n_active, generator) for _ in range(STARTS if k > len(true.a) else 1)]
    if len(starts) > 1:
        tried = [fit(x[:STARTING_ROWS], y[:STARTING_ROWS], start, 50) for start in starts]
        starts = [max(tried, key=lambda pair: pair[1])[0]]
    found, _ = fit(x, y, starts[0])
    hellinger, variation = density_distances(found, true)
    figures = {"hellinger": hellinger, "variation": variation}
    if k == len(true.a):
        figures |= {"voronoi": voronoi_loss(found, true), "experts": expert_error(found, true)}
        figures["misrouted"] = abs(boundary(found) - boundary(true))
    return figures


def boundary(mixture: LinearMixture) -> float:
    """The input in [0, 1] at which two experts have equal logits."""
    gap = (mixture.offsets[0] - mixture.offsets[1]) / (mixture.slopes[1] - mixture.slopes[0])
    return float(gap.clamp(0, 1))


def expert_error(found: LinearMixture, true: LinearMixture) -> float:
    """Mean over experts of the sum of absolute errors in a, b and σ²."""
    gaps = [(getattr(found, name) - getattr(true, name)).abs() for name in ("a", "b", "noise")]
    return float(torch.stack(gaps).sum(0).mean())


def fit(x: Tensor, y: Tensor, start: LinearMixture, max_iterations: int = 500) -> tuple[LinearMixture, float]:
    """EM of the library from a start, with a dense or a sparse gate.

    Returns:
        The estimate, whose last expert has gate weights of zero, and the bound.
    """
    gate: SoftmaxGate | TopKGate
    k = len(start.a)
    if start.n_active == k:
        gate = dense = SoftmaxGate(k, 1, precision=FLAT)
    else:
        gate = TopKGate(k, 1, n_active=start.n_active, precision=FLAT)
        dense = gate.dense
    dense.weights = torch.stack([start.offsets, start.slopes])
    experts, bound, _ = fit_with(x, y, gate, start.responsibilities(x, y), max_iterations)
    b, a = torch.stack([expert.coefficients for expert in experts]).T
    noise = vector(*(expert.noise for expert in experts))
    offsets, slopes = dense.weights - dense.weights[:, -1:]
    return LinearMixture(offsets, slopes, a, b, noise, start.n_active), bound


def fit_with(
    x: Tensor, y: Tensor, gate: Gate, responsibilities: Tensor, max_iterations: int
) -> tuple[list[LinearExpert], float, int]:
    """EM with any gate, changed in place: the experts, the bound, and the number of iterations."""
    X = x.unsqueeze(-1)
    experts = [LinearExpert(X, y, prior_variance=1 / FLAT, least_noise=1e-6) for _ in responsibilities[0]]
    moe = MixtureOfExperts(X, y, experts=experts, gate=gate)
    moe.set_responsibilities(responsibilities)
    run = run_em(moe, Cholesky(), max_iterations, TOLERANCE)
    return experts, run.trace[-1], len(run.trace)


def voronoi_loss(found: LinearMixture, true: LinearMixture) -> float:
    """D1 of the source: errors of the experts in each true one's cell, by gate weight, plus errors of those weights."""
    pairs = (("slopes", found.slopes), ("a", found.a), ("b", found.b), ("noise", found.noise))
    gaps = sum((values.unsqueeze(-1) - getattr(true, name)).abs() for name, values in pairs)
    cell = torch.as_tensor(gaps).argmin(-1)
    weight = found.offsets.exp()
    errors = weight @ torch.as_tensor(gaps).gather(-1, cell.unsqueeze(-1)).squeeze(-1)
    held = torch.zeros_like(true.offsets).index_add(0, cell, weight)
    return float(errors + (held - true.offsets.exp()).abs().sum())


def density_distances(found: LinearMixture, true: LinearMixture, m: int = 400) -> tuple[float, float]:
    """Mean over x in [0, 1] of Hellinger's distance and of total variation, by midpoints in x and y."""
    x = (torch.arange(m, dtype=torch.float64) + 0.5) / m
    grid = torch.linspace(-8, 18, 1301, dtype=torch.float64)
    x_all, y_all = x.unsqueeze(-1), grid.unsqueeze(0)
    p, q = (
        torch.logsumexp(torch.log_softmax(one.logits(x), -1).unsqueeze(1) + one.log_densities(x_all, y_all), -1).exp()
        for one in (true, found)
    )
    step = float(grid[1] - grid[0])
    affinity = (p * q).sqrt().sum(-1) * step
    lost = (p - q).clamp_min(0).sum(-1) * step
    return float((1 - affinity).clamp_min(0).sqrt().mean()), float(lost.mean())


# Temperatures: two experts on [-2, 2], gate softmax((σ(β1 x) + β0) / τ).


class LinearTemperatureGate(ParametricGate):
    """softmax((β1 x + β0) / τ) of two experts with β1 = β0 = 0 for the second: what the library refuses to offer."""

    def __init__(self) -> None:
        super().__init__(2)
        self.slopes = torch.nn.Parameter(vector(0.0))
        self.offsets = torch.nn.Parameter(vector(0.0))
        self.log_temperature = torch.nn.Parameter(vector(0.0).squeeze())

    def logits(self, X: Tensor) -> Tensor:
        first = (X * self.slopes + self.offsets) / self.log_temperature.exp()
        return torch.cat([first, torch.zeros_like(first)], -1)

    def log_prior(self) -> Tensor:
        """That of `ActivationGate`."""
        weights = self.slopes.square().sum() + self.offsets.square().sum()
        return -0.5 * FLAT * weights - 0.5 * self.log_temperature.square()

    def description(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "LinearTemperatureGate":
        return cls()


class Logits(torch.nn.Module):
    """A gate's logits as the forward pass that `functional_call` wants."""

    def __init__(self, gate: ParametricGate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, X: Tensor) -> Tensor:
        return self.gate.logits(X)


TEMPERATURE = 0.7
ROUTES = vector(2.0, -1.0, 0.3, TEMPERATURE)  # β1 of both experts, β0 of the first, τ
EXPERTS = vector(-2.0, 2.0, 1.0, -1.0, 0.25, 0.25)  # a, b, σ²


def temperature_gate(activation: str) -> ParametricGate:
    if activation == "linear":
        return LinearTemperatureGate()
    return ActivationGate(2, 1, activation, precision=FLAT)  # type: ignore[arg-type]


def gate_values(activation: str, routes: Tensor) -> dict[str, Tensor]:
    """What parameters a gate has at β1, β0 and τ; a linear one knows differences alone."""
    slopes, offset, log_temperature = routes[:-2], routes[-2:-1], routes[-1].log()
    if activation != "linear":
        slopes, offset = slopes.unsqueeze(0), torch.cat([offset, torch.zeros_like(offset)])
    return {"gate.slopes": slopes, "gate.offsets": offset, "gate.log_temperature": log_temperature}


def true_routes(activation: str) -> Tensor:
    return torch.cat([ROUTES[:1] - ROUTES[1:2], ROUTES[2:]]) if activation == "linear" else ROUTES


def fisher_information(activation: str, *, with_temperature: bool = True) -> Tensor:
    """E[s s'] of the score s of gate and experts at the truth, by midpoints in x and a grid in y."""
    module, routes = Logits(temperature_gate(activation)), true_routes(activation)
    x = (torch.arange(300, dtype=torch.float64) + 0.5) / 75 - 2
    y = torch.linspace(-9, 9, 601, dtype=torch.float64)

    def log_density(parameters: Tensor) -> Tensor:
        gate, (a, b, noise) = parameters[:-6], parameters[-6:].split(2)
        logits = torch.func.functional_call(module, gate_values(activation, gate), x.unsqueeze(-1))
        experts = LinearMixture(a, b, a, b, noise, 2).log_densities(x.unsqueeze(-1), y)
        return torch.logsumexp(torch.log_softmax(logits, -1).unsqueeze(1) + experts, -1)

    parameters = torch.cat([routes, EXPERTS])
    score = torch.func.jacfwd(log_density)(parameters)
    if not with_temperature:
        score = score[..., torch.arange(len(parameters)) != len(routes) - 1]
    weight = log_density(parameters).exp() * (y[1] - y[0]) / len(x)
    return torch.einsum("xy,xyp,xyq->pq", weight, score, score)


def least_eigenvalues() -> Figures:
    """For each gate the least eigenvalue, and for a linear one that without its temperature."""
    found = {name: float(torch.linalg.eigvalsh(fisher_information(name))[0]) for name in LEAST}
    without = fisher_information("linear", with_temperature=False)
    return found | {"linear, temperature known": float(torch.linalg.eigvalsh(without)[0])}


def temperature_error(n: int, activation: str, seed: int) -> Figures:
    """One draw of n rows; the fit starts with a temperature that is off by half of it, up or down."""
    generator = torch.Generator().manual_seed(seed)
    gate, routes = temperature_gate(activation), true_routes(activation)
    a, b, noise = EXPERTS.split(2)
    module, names = Logits(gate), dict(Logits(gate).named_parameters())
    for name, value in gate_values(activation, routes).items():
        names[name].data.copy_(value)
    x = 4 * torch.rand(n, generator=generator, dtype=torch.float64) - 2
    probs = gate.log_probs(x.unsqueeze(-1)).exp().detach()
    k = torch.multinomial(probs, 1, generator=generator).squeeze(-1)
    y = a[k] * x + b[k] + noise[k].sqrt() * torch.randn(n, generator=generator, dtype=torch.float64)
    factor = 1.5 if seed % 2 else 1 / 1.5
    off = torch.cat([routes[:-1], factor * routes[-1:]])
    for name, value in gate_values(activation, off).items():
        names[name].data.copy_(value)
    with torch.no_grad():
        logits = module(x.unsqueeze(-1))
    at_truth = LinearMixture(a, b, a, b, noise, 2).log_densities(x, y)
    _, _, iterations = fit_with(x, y, gate, torch.softmax(logits + at_truth, -1), 500)
    learned = float(module.gate.log_temperature.detach().exp())
    return {"squared": (learned - TEMPERATURE) ** 2, "temperature": learned, "iterations": iterations}


# The suite: one case for each experiment and number of rows, which repeats it over seeds.


def repeated(one: Callable[[int], Figures], repeats: int) -> Run:
    """Lists of figures over seeds."""

    def step() -> Figures:
        found = [one(seed) for seed in range(repeats)]
        return {name: [each[name] for each in found] for name in found[0]}

    return Run(step, lambda figures: figures)


def prepare_fit(kind: str, n: int, repeats: int) -> Run:
    return repeated(lambda seed: estimate(n, kind, 1000 * n + seed), repeats)


def prepare_temperature(kind: str, n: int, repeats: int) -> Run:
    activation = "tanh" if kind == TANH else "linear"
    return repeated(lambda seed: temperature_error(n, activation, 1000 * n + seed), repeats)


def prepare_fisher(kind: str) -> Run:
    return Run(least_eigenvalues, lambda figures: figures)


def case(kind: str, n: int, small: bool) -> Case:
    prepare = prepare_temperature if kind in (TANH, LINEAR) else prepare_fit
    parameters = {"kind": kind, "n": n, "repeats": 3 if small else 20}
    return Case("rates", "gpmoe", prepare, parameters, repetitions=1, warm_up=0)


def fisher_case() -> Case:
    return Case("Fisher", "gpmoe", prepare_fisher, {"kind": FISHER}, repetitions=1, warm_up=0)


def sizes(kind: str, small: bool) -> tuple[int, ...]:
    if small:
        return 100, 300, 1000
    whole = (100, 316, 1000, 3162, 10_000, 31_623, 100_000)
    return whole[2:] if kind in (TANH, LINEAR) else whole


def cases(small: bool) -> list[Case]:
    kinds = (*FITS, TANH, LINEAR)
    return [fisher_case(), *(case(kind, n, small) for kind in kinds for n in sizes(kind, small))]


def figures_of(results: Results, kind: str, figure: str, small: bool) -> np.ndarray:
    """A figure by size and seed; NaN for a size that is not stored."""
    rows = [results.values(case(kind, n, small), figure) for n in sizes(kind, small)]
    return np.array([row[0] if row else [math.nan] * (3 if small else 20) for row in rows])


def slope(n: tuple[int, ...], values: np.ndarray, root: float = 1.0) -> tuple[float, float]:
    """Least-squares slope of log mean(values)^(1 / root) against log n, and its standard error by the jackknife.

    Args:
        n: sizes.
        values: by size and repetition, independent over both.
        root: 2 for squared errors.
    """

    def of(chosen: np.ndarray) -> float:
        return float(np.polyfit(np.log(n), np.log(chosen.mean(1)) / root, 1)[0])

    if not np.isfinite(values).all():
        return math.nan, math.nan
    count = values.shape[1]
    left_out = [of(np.delete(values, i, 1)) for i in range(count)]
    return of(values), float(math.sqrt((count - 1) * np.var(left_out)))


def within(value: float, least: float, most: float) -> str:
    """A verdict on an interval."""
    if value != value:
        return f" (bar [{least:g}, {most:g}])"
    return f" (bar [{least:g}, {most:g}]: {'met' if least <= value <= most else '**not met**'})"


def spread(values: np.ndarray) -> str:
    """Mean and standard error."""
    return f"{values.mean():.3g} ± {values.std() / max(1, len(values) - 1) ** 0.5:.1g}"


def ratio(n: tuple[int, ...], values: np.ndarray) -> float:
    """Mean at the most rows over that at 1,000."""
    return float(values[-1].mean() / values[n.index(1000)].mean())


def rate_table(results: Results, small: bool) -> list[list[str]]:
    asked: list[tuple[str, str, str, float, tuple[float, float]]] = [
        ("T1", DENSE, "voronoi", 1, (-0.6, -0.4)),
        ("T2", SPARSE, "misrouted", 1, (-math.inf, -0.45)),
        ("T2", SPARSE, "experts", 1, (-0.6, -0.4)),
        ("T3", DENSE, "hellinger", 1, (-0.6, -0.4)),
        ("T3", DENSE, "variation", 1, (-0.6, -0.4)),
        ("T3", OVER, "hellinger", 1, (-0.6, -0.4)),
        ("T3", OVER, "variation", 1, (-0.6, -0.4)),
        ("T7", TANH, "squared", 2, (-0.6, -0.35)),
    ]
    rows = []
    for name, kind, figure, root, bar in asked:
        value, error = slope(sizes(kind, small), figures_of(results, kind, figure, small), root)
        rows.append([name, kind, LABELS[figure], f"{number(value)} ± {number(error)}{within(value, *bar)}"])
    return rows


def ratio_table(results: Results, small: bool) -> list[list[str]]:
    rows = []
    for name, kind, figure, bar, at_most, root in (
        ("T4", FEW, "hellinger", 0.7, False, 1),
        ("T4", OVER, "hellinger", 0.2, True, 1),
        ("T7", LINEAR, "squared", 0.5, False, 2),
    ):
        value = ratio(sizes(kind, small), figures_of(results, kind, figure, small)) ** (1 / root)
        rows.append([name, kind, LABELS[figure], f"{number(value)}{verdict(value, bar, at_most)}"])
    return rows


LABELS = {
    "voronoi": "Voronoi loss D1",
    "hellinger": "mean Hellinger distance",
    "variation": "mean total variation",
    "experts": "errors of experts",
    "misrouted": "misrouted mass",
    "squared": "RMSE of τ",
}
SHOWN = {
    DENSE: ("voronoi", "experts", "hellinger", "variation"),
    SPARSE: ("misrouted", "experts", "hellinger", "variation"),
    OVER: ("hellinger", "variation"),
    FEW: ("hellinger", "variation"),
    TANH: ("temperature",),
    LINEAR: ("temperature",),
}


def error_table(kind: str, results: Results, small: bool) -> Table:
    shown = SHOWN[kind]
    columns = [figures_of(results, kind, figure, small) for figure in shown]
    rows = [
        [f"{n:,}", *(spread(column[i]) for column in columns), duration(results.median(case(kind, n, small)))]
        for i, n in enumerate(sizes(kind, small))
    ]
    header = ["rows", *(LABELS.get(figure, "estimate of τ = 0.7") for figure in shown), "time of all fits"]
    return Table(f"{kind}: mean ± s.e. over {columns[0].shape[1]} draws", header, rows)


def fisher_rows(results: Results) -> list[list[str]]:
    rows = []
    for name in (*LEAST, "linear, temperature known"):
        value = results.median(fisher_case(), name)
        size = abs(value) if name == "linear" else value
        rows.append(["T6", name, f"{value:.3g}{verdict(size, LEAST.get(name), at_most=name == 'linear')}"])
    return rows


def tables(results: Results, small: bool) -> list[Table]:
    rates = Table(
        "Log-log slopes of mean errors against rows, with jackknife standard errors",
        ["test", "fit", "error", "slope"],
        rate_table(results, small),
        (
            "Truth: two experts, β0 = (-8, 0), β1 = (25, 0), a = (-20, 20), b = (15, -5), standard deviations (0.3, "
            "0.4), x uniform on [0, 1]. Gate dense, but for top-1, whose truth routes by the larger logit.",
            "EM starts near the truth, as published. Of three experts the best of eight starts on 2,000 rows goes on.",
            "Temperatures: tanh gate at β1 = (2, -1), β0 = (0.3, 0), τ = 0.7, experts -2x + 1 and 2x - 1, x uniform "
            "on [-2, 2]; EM starts with τ half as large again or two thirds as large; prior of log τ N(0, 1).",
        ),
    )
    ends = Table(
        "Mean error at the most rows over that at 1,000", ["test", "fit", "error", "ratio"], ratio_table(results, small)
    )
    fisher = Table(
        "Least eigenvalue of the Fisher information of gate and experts",
        ["test", "gate", "eigenvalue"],
        fisher_rows(results),
        ("By quadrature at the truth. The linear gate's parameters are differences, its temperature is one too many.",),
    )
    return [rates, ends, fisher, *(error_table(kind, results, small) for kind in SHOWN)]


SUITE = Suite("mixtures_theory", cases, tables)
