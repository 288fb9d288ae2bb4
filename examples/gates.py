"""Which gate? Four on the motorcycle data: held-out scores, diagnostics, and how experts share the time axis."""

# %% a third of the rows is kept aside
import numpy as np
from matplotlib.figure import Figure

from gpmoe import GPRegressor, MixtureOfExpertsRegressor
from gpmoe.data import load_motorcycle
from gpmoe.gates import gate_diagnostics
from gpmoe.plotting import (
    expert_curves,
    plot_experts,
    plot_gate,
    plot_responsibilities,
    plot_usage,
    responsibility_points,
    usage_curves,
)

X, y = load_motorcycle()
test = np.random.default_rng(0).permutation(len(y)) < len(y) // 3
print(f"one GP: log score {GPRegressor().fit(X[~test], y[~test]).log_score(X[test], y[test]):.2f}")

# %% the same three experts behind each gate
mixtures = {}
for gate in ("constant", "softmax", "gaussian_mixture", "gp_softmax"):
    mixture = MixtureOfExpertsRegressor(3, gate=gate, random_state=0).fit(X[~test], y[~test])
    mixtures[gate] = mixture
    inside = mixture.scaling_.inputs(X)  # gates see scaled inputs
    print(f"\n{gate}: log score {mixture.log_score(X[test], y[test]):.2f}")
    print(gate_diagnostics(mixture.model_.gate, inside))

# %% where each gate puts its experts; dots are responsibilities of the training rows
grid = np.linspace(X.min(), X.max(), 300)[:, None]
figure = Figure(figsize=(8, 7), layout="constrained")
for ax, (gate, mixture) in zip(figure.subplots(4, 1, sharex=True), mixtures.items(), strict=True):
    plot_gate(expert_curves(mixture, grid), ax, xlabel="")
    plot_responsibilities(responsibility_points(X[~test], mixture.responsibilities_), ax, xlabel="")
    ax.set_title(gate, loc="left", fontsize="medium")
    ax.set_ylabel("probability")
figure.supxlabel("time after impact (ms)")
figure.savefig("gates.png", dpi=120)

# %% one of them closely: experts with their 90 % bands, and how the fit came to their shares
chosen = mixtures["gp_softmax"]
figure = Figure(figsize=(8, 6), layout="constrained")
top, bottom = figure.subplots(2, 1, height_ratios=(2, 1))
plot_experts(expert_curves(chosen, grid), top, X=X, y=y, xlabel="time after impact (ms)", ylabel="acceleration (g)")
plot_usage(usage_curves(chosen.report_.usage), bottom)
figure.savefig("experts.png", dpi=120)

# Expected: log scores of about -4.6 from one GP and -4.7 behind the constant gate, which knows no time; -4.5 or more
# behind the others, whose routing entropy is a fraction of log 3.
