"""Optuna's own contract tests of samplers, run on ours."""

from collections.abc import Callable

import optuna
import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase

from gpmoe.bo.sampler import GPMoESampler

optuna.logging.set_verbosity(optuna.logging.WARNING)


class TestGPMoESampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """Two startup trials, so that the model is asked too."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: GPMoESampler(seed=0, n_startup_trials=2)
