"""Three gates on one data set: where each of them draws the line between two experts."""

# %% a quiet slow wave in the middle, a loud fast one on both sides
import numpy as np
from matplotlib.figure import Figure

from gpmoe import MixtureOfExpertsRegressor
from gpmoe.plotting import expert_curves, plot_gate

rng = np.random.default_rng(0)
X = rng.uniform(-3, 3, (200, 1))
inside = np.abs(X[:, 0]) < 1
y = np.where(
    inside,
    np.sin(X[:, 0]) + 0.05 * rng.standard_normal(len(X)),
    np.sin(6 * X[:, 0]) + 0.4 * rng.standard_normal(len(X)),
)

# %% softmax has one boundary between two experts; a Gaussian mixture and a GP can close a region
gates = ("softmax", "gaussian_mixture", "gp_softmax")
X_new = np.linspace(-3, 3, 400)[:, None]
middle = np.abs(X_new[:, 0]) < 1
figure = Figure(figsize=(8, 8), layout="constrained")
rows = figure.subplots(4, 1, sharex=True)
rows[0].scatter(X[:, 0], y, s=6, color="black")
rows[0].set_ylabel("y")
for gate, ax in zip(gates, rows[1:], strict=True):
    model = MixtureOfExpertsRegressor(n_experts=2, gate=gate, random_state=0).fit(X, y)
    probs = model.predict_gate_probs(X_new)
    quiet = probs[middle].mean(0).argmax()
    right = np.mean((probs.argmax(1) == quiet) == middle)
    print(f"{gate}: {100 * right:.0f} % of the line with the right expert")
    plot_gate(expert_curves(model, X_new), ax, xlabel="x" if ax is rows[-1] else "")
    ax.set_title(gate, loc="left", fontsize=10)
figure.savefig("gates.png", dpi=120)

# Expected:
