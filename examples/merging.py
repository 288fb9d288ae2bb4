"""Merge two classifiers into one: iris and wine, each shown as four columns and three classes."""

# %% Two data sets of scikit-learn, scaled, the second reduced to its four leading components.
import torch
from sklearn.datasets import load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from gpmoe.bo.offline.amortised_pareto import amortised_front, merged

tasks = []
for table in (load_iris(), load_wine()):
    X = StandardScaler().fit_transform(table.data)
    tasks.append((StandardScaler().fit_transform(PCA(4).fit_transform(X)), table.target))


# %% One linear model for each, and one that knows neither. Parameters are a (3, 5) matrix, flat.
def parameters(X, y):
    model = LogisticRegression().fit(X, y)
    return torch.from_numpy(model.coef_.copy()).flatten(), torch.from_numpy(model.intercept_.copy())


tuned = torch.stack([torch.cat(parameters(X, y)) for X, y in tasks])
pretrained = torch.zeros_like(tuned[0])


# %% The metrics of a merged model: minus its log loss on each data set.
def metrics(c):
    theta = merged(pretrained, tuned, c)
    found = []
    for X, y in tasks:
        logits = torch.from_numpy(X) @ theta[:12].reshape(3, 4).T + theta[12:]
        found.append(-torch.nn.functional.cross_entropy(logits, torch.from_numpy(y)))
    return torch.stack(found)


# %% Sixteen merged models are evaluated; the front is read off their surrogates.
front = amortised_front(metrics, 2, n_rounds=1)
print(f"{len(front.evaluated)} models evaluated, {len(front.coefficients)} points on the front")
for preference in ([1.0, 0.0], [0.5, 0.5], [0.0, 1.0]):
    c = front.pick(preference)
    iris, wine = (-metrics(c)).tolist()
    print(f"weights {preference}: coefficients {c[0]:.2f} {c[1]:.2f}, log loss {iris:.2f} on iris, {wine:.2f} on wine")

# 16 models evaluated, 493 points on the front
# weights [1.0, 0.0]: coefficients 1.00 0.05, log loss 0.19 on iris, 5.36 on wine
# weights [0.5, 0.5]: coefficients 0.17 0.33, log loss 1.06 on iris, 0.72 on wine
# weights [0.0, 1.0]: coefficients 0.04 1.00, log loss 3.58 on iris, 0.11 on wine
