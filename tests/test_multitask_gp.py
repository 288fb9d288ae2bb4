"""Multi-task GPs: four ways of solving against naive dense algebra, missing targets, task covariances."""

import copy
import math

import pytest
import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel
from torch import Tensor

from gpmoe.errors import InputError, NonFiniteError, ShapeError
from gpmoe.inference import fit
from gpmoe.inference.fit_components import fit_components, penalised_evidence
from gpmoe.kernels import (
    ConvolvedTaskKernel,
    FreeCoregionalisation,
    OutlierTaskGate,
    SpectralTaskKernel,
    TaskKernel,
    task_relevance,
)
from gpmoe.models import ExactGP
from gpmoe.models.multitask_gp import MultitaskGP
from gpmoe.models.task_plan import plan_tasks
from gpmoe.models.task_starts import default_kernels, pairwise_correlation

NOT_A_NUMBER = float("nan")


def number(value: Tensor) -> float:
    """A 0-dimensional tensor as a number, without its gradient."""
    return float(value.detach())


def table(n: int = 9, T: int = 3, d: int = 1, missing: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    Y = torch.randn(n, T, generator=generator, dtype=torch.float64) + X.sin().sum(-1, keepdim=True)
    Y.view(-1)[torch.randperm(n * T, generator=generator)[:missing]] = NOT_A_NUMBER
    return X, Y


def scattered(gp: MultitaskGP, seed: int = 1) -> MultitaskGP:
    """The model at parameters of no special value."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in gp.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return gp


def naive_covariance(gp: MultitaskGP, rows: Tensor, columns: Tensor) -> Tensor:
    """Cov(f_t(x), f_t'(x')) by a double loop over rows (x, t)."""
    C = torch.zeros(len(rows), len(columns), dtype=torch.float64)
    for i, a in enumerate(rows):
        for j, b in enumerate(columns):
            for kernel, tasks in zip(gp.kernels, gp.coregionalisations, strict=True):
                k = kernel(a[:-1].unsqueeze(0), b[:-1].unsqueeze(0)).to_dense()[0, 0]
                C[i, j] += (k * tasks()[int(a[-1]), int(b[-1])]).detach()
    return C


def naive_posterior(gp: MultitaskGP, rows: Tensor) -> tuple[Tensor, Tensor]:
    task, new = gp.X[:, -1].long(), rows[:, -1].long()
    C = naive_covariance(gp, gp.X, gp.X) + torch.diag(gp.noise().detach()[task])
    K = naive_covariance(gp, rows, gp.X)
    constants = gp.constants.detach()
    mean = constants[new] + K @ torch.linalg.solve(C, gp.y - constants[task])
    return mean, naive_covariance(gp, rows, rows) - K @ torch.linalg.solve(C, K.mT)


def naive_log_likelihood(gp: MultitaskGP) -> Tensor:
    task = gp.X[:, -1].long()
    C = naive_covariance(gp, gp.X, gp.X) + torch.diag(gp.noise().detach()[task])
    return torch.distributions.MultivariateNormal(gp.constants.detach()[task], C).log_prob(gp.y)


def new_rows(gp: MultitaskGP) -> Tensor:
    tasks = torch.arange(gp.n_tasks, dtype=torch.float64)
    x = gp.sites[:3].repeat_interleave(gp.n_tasks, 0) + 0.1
    return torch.cat([x, tasks.repeat(3).unsqueeze(-1)], -1)


WAYS = [
    ("eigenbasis", 1, 0),
    ("complement", 1, 5),
    ("dense", 1, 5),
    ("filter", 1, 5),
    ("dense", 2, 5),
    ("filter", 3, 5),
]


@pytest.fixture(params=WAYS, ids=lambda way: f"{way[0]}-{way[1]}")
def gp(request: pytest.FixtureRequest) -> MultitaskGP:
    method, components, missing = request.param
    X, Y = table(missing=missing)
    return scattered(MultitaskGP(X, Y, n_components=components, rank=2, method=method))


def test_the_likelihood_is_that_of_dense_algebra(gp: MultitaskGP) -> None:
    assert number(gp.log_marginal_likelihood()) == pytest.approx(number(naive_log_likelihood(gp)), abs=1e-9)


def test_its_gradient_is_that_of_finite_differences(gp: MultitaskGP) -> None:
    gp.log_marginal_likelihood().backward()
    for name, parameter in gp.named_parameters():
        flat, slope = parameter.data.view(-1), parameter.grad
        assert slope is not None, name
        for i in range(len(flat)):
            here, ends = number(flat[i]), []
            for step in (1e-5, -1e-5):
                flat[i] = here + step
                ends.append(number(gp.log_marginal_likelihood().detach()))
            flat[i] = here
            assert number(slope.view(-1)[i]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-6), name


def test_the_posterior_is_that_of_dense_algebra(gp: MultitaskGP) -> None:
    rows = new_rows(gp)
    mean, covariance = naive_posterior(gp, rows)
    found = gp.latent(rows)
    assert torch.allclose(found[0], mean, atol=1e-9)
    assert torch.allclose(found[1], covariance, atol=1e-9)
    marginals = gp.marginals(rows)
    assert torch.allclose(marginals[0], mean, atol=1e-9)
    assert torch.allclose(marginals[1], covariance.diagonal(), atol=1e-9)


def test_the_posterior_is_differentiable_in_its_inputs(gp: MultitaskGP) -> None:
    x, task = new_rows(gp)[:2].split([1, 1], dim=-1)

    def moments(x: Tensor) -> tuple[Tensor, ...]:
        return gp.latent(torch.cat([x, task], -1))

    gp.requires_grad_(False)
    assert torch.autograd.gradcheck(moments, (x.clone().requires_grad_(),))


def test_botorch_sees_one_output_with_the_noise_of_each_task(gp: MultitaskGP) -> None:
    rows = new_rows(gp)
    latent, observed = gp.posterior(rows), gp.posterior(rows, observation_noise=True)
    assert latent.mean.shape == (len(rows), 1)
    added = (observed.variance - latent.variance).squeeze(-1)
    assert torch.allclose(added, gp.noise()[rows[:, -1].long()])
    later = gp.condition_on_observations(rows[:2], rows.new_tensor([[0.5], [-0.5]]))
    X, Y = torch.cat([gp.X, rows[:2]]), torch.cat([gp.y, rows.new_tensor([0.5, -0.5])])
    noise = gp.noise().detach()[X[:, -1].long()]
    C, K = naive_covariance(gp, X, X) + torch.diag(noise), naive_covariance(gp, rows, X)
    constants = gp.constants.detach()
    expected = constants[rows[:, -1].long()] + K @ torch.linalg.solve(C, Y - constants[X[:, -1].long()])
    assert torch.allclose(later.posterior(rows).mean.squeeze(-1), expected, atol=1e-8)


def test_copies_and_the_cache_follow_the_parameters(gp: MultitaskGP) -> None:
    rows = new_rows(gp)
    before, twin = gp.marginals(rows)[0], copy.deepcopy(gp)
    gp.constants.data += 1.0
    assert torch.allclose(gp.marginals(rows)[0], naive_posterior(gp, rows)[0], atol=1e-9)
    assert torch.equal(twin.marginals(rows)[0], before)


def test_missing_targets_are_not_imputed() -> None:
    """Rows without any target change nothing, and neither does what stands beside a missing one."""
    X, Y = table(n=6, missing=3)
    padded = torch.cat([Y, torch.full((2, 3), NOT_A_NUMBER, dtype=torch.float64)])
    one = MultitaskGP(X, Y, method="dense")
    other = MultitaskGP(torch.cat([X, X[:2] + 9]), padded, method="complement")
    other.load_state_dict({**other.state_dict(), **dict(one.named_parameters())})
    assert number(one.log_marginal_likelihood()) == pytest.approx(number(other.log_marginal_likelihood()), abs=1e-9)


def test_independent_tasks_are_single_gps() -> None:
    X, Y = table(T=2, d=2)
    gp = scattered(MultitaskGP(X, Y, rank=0))
    total = 0.0
    for t in range(2):
        known = ~Y[:, t].isnan()
        alone = ExactGP(X[known], Y[known, t], noise=number(gp.noise()[t]), kernel=Scaled(gp, t))
        alone.mean_module.initialize(constant=number(gp.constants[t]))
        total += number(alone.log_marginal_likelihood())
    assert number(gp.log_marginal_likelihood()) == pytest.approx(total, abs=1e-6)


class Scaled(Kernel):
    """The kernel of one task of a model."""

    def __init__(self, gp: MultitaskGP, task: int) -> None:
        super().__init__()
        self.gp = [gp]
        self.task = task

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Tensor:
        k = self.gp[0].kernels[0](x1, x2, diag=diag)
        return self.gp[0].coregionalisation()[0, self.task, self.task] * (k if diag else k.to_dense())


def test_a_fit_finds_what_one_task_tells_of_another() -> None:
    x = torch.linspace(0, 8, 40, dtype=torch.float64).unsqueeze(-1)
    generator = torch.Generator().manual_seed(0)
    Y = torch.cat([x.sin(), -2 * x.sin() + 1], -1)
    truth = Y[15:25, 1].clone()
    Y = Y + 0.05 * torch.randn(Y.shape, generator=generator, dtype=torch.float64)
    Y[15:25, 1] = NOT_A_NUMBER
    gp = MultitaskGP(x, Y)
    before = number(gp.log_marginal_likelihood())
    report = fit(gp)
    assert report.solver.startswith(("filter", "complement"))
    assert report.objective_trace[-1] > before
    rows = torch.cat([x[15:25], torch.ones(10, 1, dtype=torch.float64)], -1)
    mean, variance = gp.marginals(rows)
    assert number((mean - truth).abs().max()) < 0.25
    assert number(((mean - truth).abs() / variance.sqrt()).max()) < 4


def test_rows_at_one_input_and_single_rows_are_ordinary() -> None:
    X, Y = table(n=4, missing=0)
    X[1], Y[2] = X[0], NOT_A_NUMBER
    values = [
        number(MultitaskGP(X, Y, method=method).log_marginal_likelihood())
        for method in ("complement", "dense", "filter")
    ]
    assert values == pytest.approx([values[0]] * 3, abs=1e-8)
    alone = MultitaskGP(X[:1], Y[:1, :1], rank=1)
    spread = number(alone.coregionalisation()[0, 0, 0] + alone.noise()[0])
    assert number(alone.log_marginal_likelihood()) == pytest.approx(-0.5 * math.log(2 * math.pi * spread))


def test_the_cheapest_way_is_chosen_and_said() -> None:
    assert plan_tasks(300, 4, 1200, n_components=1).method == "eigenbasis"
    assert plan_tasks(300, 4, 1190, n_components=1).method == "complement"
    assert plan_tasks(300, 4, 200, n_components=1).method == "dense"
    assert plan_tasks(5000, 4, 19000, n_components=2, orders=(3, 3)).method == "filter"
    assert plan_tasks(5000, 4, 19000, n_components=2, orders=(3, 3)).prediction == "filter"
    assert str(plan_tasks(500, 4, 1900, n_components=2, orders=(3, 3))).startswith("filter, predictions dense")
    assert "1190 of 1200 cells" in str(plan_tasks(300, 4, 1190, n_components=2))
    X, Y = table(n=20)
    assert MultitaskGP(X, Y, kernels=[RBFKernel()]).plan.method in ("complement", "dense")
    assert MultitaskGP(X, Y, kernels=[MaternKernel(nu=0.5)], method="filter").orders == (1,)
    for wrong in ("cholesky", "eigenbasis"):
        with pytest.raises(InputError, match=r"method|does not fit"):
            MultitaskGP(X, Y, method=wrong)


def test_what_does_not_fit_is_refused() -> None:
    X, Y = table()
    with pytest.raises(ShapeError, match="`Y` must have shape"):
        MultitaskGP(X, Y[:-1])
    with pytest.raises(InputError, match=r"columns \[1\]"):
        MultitaskGP(X, torch.stack([Y[:, 0], torch.full_like(Y[:, 0], NOT_A_NUMBER)], 1))
    with pytest.raises(NonFiniteError, match="infinite"):
        MultitaskGP(X, torch.full_like(Y, math.inf))
    with pytest.raises(InputError, match="`rank`"):
        MultitaskGP(X, Y, rank=4)
    with pytest.raises(InputError, match="variance"):
        MultitaskGP(X, Y, noise=-1.0)
    with pytest.raises(InputError, match="as many"):
        MultitaskGP(X, Y, kernels=default_kernels(1, 2), coregionalisations=[FreeCoregionalisation(3)])
    with pytest.raises(InputError, match="must be a task"):
        MultitaskGP(X, Y).marginals(torch.tensor([[0.0, 3.0]], dtype=torch.float64))


def test_a_correlation_over_common_rows_is_positive_semidefinite() -> None:
    _, Y = table(n=40, T=4, missing=60)
    R = pairwise_correlation(Y)
    assert torch.allclose(R.diagonal(), torch.ones(4, dtype=torch.float64))
    assert bool((torch.linalg.eigvalsh(R) > 0).all())
    both = Y[~Y[:, :2].isnan().any(1), :2]
    assert number(R[0, 1]) == pytest.approx(number(torch.corrcoef(both.mT)[0, 1]), abs=0.1)


def test_a_free_covariance_starts_near_what_it_is_given() -> None:
    R = torch.tensor([[1.0, 0.8, 0.0], [0.8, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    full = FreeCoregionalisation(3, rank=3)
    full.start_at(R)
    assert torch.allclose(full(), R, atol=0.06)
    independent = FreeCoregionalisation(3, rank=0)
    independent.start_at(R)
    assert torch.allclose(independent(), torch.eye(3, dtype=torch.float64))


def test_the_gate_finds_the_outlying_tasks() -> None:
    x = torch.linspace(0, 10, 60, dtype=torch.float64).unsqueeze(-1)
    generator = torch.Generator().manual_seed(3)
    shared, own = x.sin(), (1.7 * x).cos()
    Y = torch.cat([shared] * 5 + [own] * 2, -1) + 0.1 * torch.randn(60, 7, generator=generator, dtype=torch.float64)
    gate = OutlierTaskGate(7)
    gate.start_at(pairwise_correlation(Y))
    gp = MultitaskGP(x, Y, coregionalisations=[gate])
    fit(gp)
    scores = gate.outlier_scores()
    assert number(scores[5:].min()) > 0.7
    assert number(scores[:5].max()) < 0.3
    assert bool((torch.linalg.eigvalsh(gate().detach()) > 0).all())
    with pytest.raises(InputError, match="three tasks"):
        OutlierTaskGate(2)


def test_the_gated_covariance_is_that_of_its_parts() -> None:
    gate = OutlierTaskGate(3)
    gate.gate_logits.data += torch.tensor([0.5, -1.0, 2.0])
    s, a, v = gate.gate_probs().detach(), gate.variances.detach(), gate.own_variance.detach()
    for t in range(3):
        for u in range(3):
            B = a[0] + a[1] * s[t] * s[u] + a[2] * (1 - s[t]) * (1 - s[u]) + (v[t] if t == u else 0)
            assert number(gate()[t, u].detach()) == pytest.approx(number(B))


def test_relevance_is_least_squares_without_a_penalty_and_sparse_with_one() -> None:
    W = torch.tensor([[1.0, 0.0], [0.9, 0.2], [0.0, 1.0], [0.1, 1.0]], dtype=torch.float64)
    B = W @ W.mT + 0.1 * torch.eye(4, dtype=torch.float64)
    R = B / B.diagonal().sqrt() / B.diagonal().sqrt().unsqueeze(-1)
    free = task_relevance(B, 0, penalty=0.0)
    assert torch.allclose(free[1:], torch.linalg.solve(R[1:, 1:], R[1:, 0]), atol=1e-8)
    sparse = task_relevance(B, 0, penalty=0.2)
    assert number(sparse[1]) > 0.3
    assert sparse[[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]
    left = R[1:, 0] - R[1:, 1:] @ sparse[1:]  # the conditions of the optimum
    threshold = 0.2 * number(R[1:, 0].abs().max())
    assert number(left[0]) == pytest.approx(threshold)
    assert number(left[1:].abs().max()) <= threshold
    assert task_relevance(B, 0, penalty=1.0).tolist() == [0.0] * 4
    with pytest.raises(InputError, match="`target`"):
        task_relevance(B, 4)


def test_kernels_that_tell_tasks_apart_are_taken_as_they_are() -> None:
    X, Y = table(d=2)
    tasks = FreeCoregionalisation(3, rank=2)
    base = RBFKernel(ard_num_dims=2).double()
    base.lengthscale = torch.tensor([0.7, 1.2])
    convolved = ConvolvedTaskKernel(tasks, n_inputs=2)
    convolved.lengthscales = torch.tensor([0.7, 1.2], dtype=torch.float64).repeat(3, 1)
    apart = MultitaskGP(X, Y, kernels=[base], coregionalisations=[tasks], noise=0.2)
    rows = new_rows(apart)
    for kernel in (TaskKernel(base, tasks), convolved):
        gp = MultitaskGP(X, Y, kernels=[kernel], noise=0.2)
        assert gp.plan.method == "dense"
        assert number(gp.log_marginal_likelihood()) == pytest.approx(number(apart.log_marginal_likelihood()))
        for found, expected in zip(gp.latent(rows), apart.latent(rows), strict=True):
            assert torch.allclose(found, expected)
        for found, expected in zip(gp.marginals(rows), apart.marginals(rows), strict=True):
            assert torch.allclose(found, expected)
    with pytest.raises(InputError, match="of 3 tasks"):
        MultitaskGP(X, Y, kernels=[SpectralTaskKernel(2, 2)])
    with pytest.raises(InputError, match="none beside"):
        MultitaskGP(X, Y, kernels=[convolved], coregionalisations=[tasks])


def test_the_gradient_reaches_the_widths_of_tasks() -> None:
    X, Y = table(n=5, missing=2)
    kernel = ConvolvedTaskKernel(FreeCoregionalisation(3, rank=1), n_inputs=1)
    gp = scattered(MultitaskGP(X, Y, kernels=[kernel]))
    gp.log_marginal_likelihood().backward()
    slope = kernel.raw_lengthscales.grad
    for t in range(3):
        here, ends = number(kernel.raw_lengthscales[t, 0]), []
        for step in (1e-5, -1e-5):
            kernel.raw_lengthscales.data[t, 0] = here + step
            ends.append(number(gp.log_marginal_likelihood()))
        kernel.raw_lengthscales.data[t, 0] = here
        assert number(slope[t, 0]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5)


def test_components_are_added_while_they_pay() -> None:
    x = torch.linspace(0, 6, 30, dtype=torch.float64).unsqueeze(-1)
    generator = torch.Generator().manual_seed(0)
    Y = x.sin() + 0.05 * torch.randn(30, 1, generator=generator, dtype=torch.float64)
    alone, report = fit_components(lambda number: MultitaskGP(x, Y, n_components=number, noise=0.0025))
    assert len(alone.kernels) == 1
    assert report.objective_trace[-1] > report.objective_trace[0]
    noises = {1: 1.0, 2: 0.0025, 3: 1.0}  # the second candidate is the best
    second, _ = fit_components(lambda number: MultitaskGP(x, Y, noise=noises[number]))
    assert number(second.noise()[0]) == pytest.approx(0.0025)
    penalty = 0.5 * math.log(30) * sum(p.numel() for p in second.parameters() if p.requires_grad)
    assert penalised_evidence(second) == pytest.approx(number(naive_log_likelihood(second)) - penalty)
