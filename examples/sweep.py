"""A sweep over two kinds of classifier, each with parameters of its own: stopped, taken up again, and read."""

# %% the space: what is under a kind is tried with that kind alone
import tempfile

import optuna
from sklearn.datasets import load_wine
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from gpmoe.bo import Categorical, Float, Int, Space, sweep

space = Space(
    {
        "kind": Categorical(["svm", "trees"]),
        "penalty": Float(1e-3, 1e3, log=True, when={"kind": ["svm"]}),
        "gamma": Float(1e-4, 1e1, log=True, when={"kind": ["svm"]}),
        "trees": Int(5, 40, when={"kind": ["trees"]}),
        "depth": Int(1, 8, when={"kind": ["trees"]}),
    }
)

# %% the objective: accuracy in cross-validation
X, y = load_wine(return_X_y=True)


def accuracy(configuration: dict) -> float:
    """Mean over five folds."""
    if configuration["kind"] == "svm":
        model = SVC(C=configuration["penalty"], gamma=configuration["gamma"])
    else:
        model = ExtraTreesClassifier(configuration["trees"], max_depth=configuration["depth"], random_state=0)
    return float(cross_val_score(make_pipeline(StandardScaler(), model), X, y).mean())


optuna.logging.set_verbosity(optuna.logging.WARNING)

# %% ten trials; then, from what the file holds, ten more, as if it had not stopped
with tempfile.TemporaryDirectory() as folder:
    storage = f"sqlite:///{folder}/sweep.db"
    sweep(accuracy, space, 10, storage=storage, maximise=True, seed=0)
    study = sweep(accuracy, space, 20, storage=storage, maximise=True, resume=True)
    best = study.best_trial

print(f"{len(study.trials)} trials, best accuracy {best.value:.3f}: {best.params['kind']}")

# Expected:
# 20 trials, best accuracy 0.983: trees
