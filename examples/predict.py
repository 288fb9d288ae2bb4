"""A Gaussian process with honest intervals on a real table."""

# %% data: 442 patients, ten measurements, disease progression after one year
from sklearn.datasets import load_diabetes
from sklearn.model_selection import train_test_split

from gpmoe import GPRegressor, metrics

X, y = load_diabetes(return_X_y=True, as_frame=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.2, random_state=0)

# %% fit: no units, no scaling, no training loop
model = GPRegressor().fit(X_train, y_train)
print(f"converged: {model.report_.converged}")

# %% predict: a distribution for each row, in the units of y
predictive = model.predict_dist(X_test)
scores = metrics.scores(predictive, y_test)
print({name: round(scores[name], 2) for name in ("rmse", "log_score", "crps", "coverage_90")})

# %% is it calibrated?
from matplotlib.figure import Figure

from gpmoe.plotting import calibration_curve, plot_calibration

figure = Figure(figsize=(4, 4), layout="constrained")
plot_calibration(calibration_curve(predictive, y_test), figure.subplots())
figure.savefig("predict.png", dpi=120)

# Expected:
# converged: True
# {'rmse': 59.07, 'log_score': -5.51, 'crps': 32.84, 'coverage_90': 0.88}
