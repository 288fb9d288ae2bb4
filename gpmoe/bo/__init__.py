"""Bayesian optimisation: spaces, samplers, sweeps."""

__all__: list[str] = []
