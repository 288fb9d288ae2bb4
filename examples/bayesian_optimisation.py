"""A fitted gpmoe model is a BoTorch model: one step of Bayesian optimisation."""

# %% twelve noisy values of a function of two inputs, to be maximised
import torch
from botorch.acquisition import qLogNoisyExpectedImprovement
from botorch.optim import optimize_acqf
from botorch.utils import manual_seed

from gpmoe.inference import fit
from gpmoe.models import ExactGP

generator = torch.Generator().manual_seed(0)
X = torch.rand(12, 2, generator=generator, dtype=torch.float64)
y = -(X - 0.4).square().sum(-1) + 0.01 * torch.randn(12, generator=generator, dtype=torch.float64)

# %% a Gaussian process in the workshop: tensors in, a posterior out
gp = ExactGP(X, (y - y.mean()) / y.std())
report = fit(gp)
print(f"converged: {report.converged}")

# %% two points to try next
with manual_seed(0):
    acquisition = qLogNoisyExpectedImprovement(gp, X_baseline=X)
    bounds = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    candidates, _ = optimize_acqf(acquisition, bounds, q=2, num_restarts=4, raw_samples=64)
print(f"nearest to the optimum: {(candidates - 0.4).norm(dim=-1).min():.1f}")

# Expected:
# converged: True
# nearest to the optimum: 0.0
