"""Small data for all tests, drawn by a generator of their own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def normal(generator: torch.Generator) -> Callable[..., Tensor]:
    """Draws a tensor of standard normal numbers in float64."""
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture
def table(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Twenty noisy values of a smooth function of two inputs: X (20, 2) and y (20,)."""
    X = 4 * torch.rand(20, 2, dtype=torch.float64, generator=generator)
    noise = torch.randn(20, dtype=torch.float64, generator=generator)
    return X, X[:, 0].sin() + 0.3 * X[:, 1] + 0.1 * noise


@pytest.fixture
def pass_in_interpreter() -> Callable[[str], None]:
    """Runs a file of tests where Triton interprets its kernels, which it decides when it is imported."""

    def run(name: str) -> None:
        command = [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name(name))]
        environment = os.environ | {"TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    return run


@pytest.fixture
def linear_operator_defaults() -> Iterator[None]:
    """linear_operator's own settings for a test, which BoTorch changes for the process when it is imported."""
    from linear_operator import settings

    with settings.max_cholesky_size(800), settings.fast_computations(True, True, True):
        yield
