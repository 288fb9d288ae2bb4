"""A mixture of GP experts where noise and smoothness change: the motorcycle data."""

# %% data: head acceleration in a simulated crash
import numpy as np
from matplotlib.figure import Figure

from gpmoe import GPRegressor, MixtureOfExpertsRegressor
from gpmoe.data import load_motorcycle
from gpmoe.plotting import expert_curves, plot_band, plot_experts, plot_gate, posterior_band

X, y = load_motorcycle()

# %% one GP has one noise level; a mixture finds as many as the evidence asks for
single = GPRegressor().fit(X, y)
mixture = MixtureOfExpertsRegressor(random_state=0).fit(X, y)
print(f"experts: {mixture.n_experts_}")

# %% 90 % intervals before the impact and in it
for time in (5.0, 30.0):
    widths = [np.diff(model.predict_interval([[time]]), axis=0).item() for model in (single, mixture)]
    print(f"{time:.0f} ms: width {widths[0]:.0f} g from one GP, {widths[1]:.0f} g from the mixture")

# %% look at it
figure = Figure(figsize=(8, 6), layout="constrained")
top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
grid = np.linspace(X.min(), X.max(), 300)[:, None]
curves = expert_curves(mixture, grid)
plot_band(posterior_band(mixture, grid, include_latent=False), top, with_mean=False, colour="grey")
plot_experts(curves, top, X=X, y=y, xlabel="", ylabel="acceleration (g)")
plot_gate(curves, bottom, xlabel="time after impact (ms)")
figure.savefig("mixture.png", dpi=120)

# Expected:
# experts: 3
# 5 ms: one GP's interval is some 80 g wide, the mixture's under 10 g
