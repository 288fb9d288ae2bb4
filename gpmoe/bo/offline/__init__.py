"""Offline optimisation: better designs from a fixed table, merged models, hyperparameters learned with the weights."""
