"""Comparisons of gpmoe with its peers; see `harness.py` for how a figure comes about."""
