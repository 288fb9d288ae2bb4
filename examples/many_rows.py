"""Three thousand rows: inducing points for smooth functions, nearest neighbours for few inputs."""

# %% a field over two coordinates
import numpy as np
import torch

from gpmoe import SparseGPRegressor
from gpmoe.distributions import Predictive
from gpmoe.inference import fit
from gpmoe.metrics import scores
from gpmoe.models import VecchiaGP

rng = np.random.default_rng(0)
X = rng.uniform(0, 10, (3_500, 2))
f = np.sin(2 * X[:, 0]) * np.cos(1.5 * X[:, 1]) + 0.3 * np.sin(5 * X[:, 0])
y = f + 0.1 * rng.standard_normal(len(X))
train, test = slice(0, 3_000), slice(3_000, None)

# %% Inducing points: any number of inputs, a smooth function. Chosen greedily, then optimised.
sparse = SparseGPRegressor(n_inducing=60, max_iterations=2000, random_state=0).fit(X[train], y[train])
print(f"{sparse.report_.solver}: log score {sparse.log_score(X[test], y[test]):.2f}")

# %% Nearest neighbours (Vecchia): few inputs, any roughness.
gp = VecchiaGP(torch.from_numpy(X[train]), torch.from_numpy(y[train]), n_neighbours=20)
report = fit(gp)
with torch.no_grad():
    mean, variance = gp.marginals(torch.from_numpy(X[test]))
    predictive = Predictive.gaussian(mean.numpy(), (variance + gp.new_noise()).numpy())
print(f"{report.solver}: log score {scores(predictive, y[test])['log_score']:.2f}")

# Expected:
# Cholesky() of 60 inducing points by scipy: log score 0.47
# Vecchia with 20 neighbours by scipy: log score 0.75
