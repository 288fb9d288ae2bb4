"""Triton's Kronecker products: in its interpreter, and compiled ahead of time for two GPUs."""

from collections.abc import Callable

import pytest
import torch

from gpmoe.linalg.triton_compiler import AVAILABLE
from gpmoe.linalg.triton_kronecker import factor_gradient_launch, multiply_launch

needs_triton = pytest.mark.skipif(not AVAILABLE, reason="Triton is not installed: pip install 'gpmoe[gpu]'")


@needs_triton
def test_values_and_gradients_hold_in_the_interpreter(pass_in_interpreter: Callable[[str], None]) -> None:
    pass_in_interpreter("interpreted_triton_kronecker.py")


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("tf32", [False, True])
def test_kernels_compile_ahead_of_time_without_spilling(tf32: bool, capability: int) -> None:
    A, X, G = torch.zeros(100, 100), torch.zeros(64, 100, 64), torch.zeros(64, 100, 64)
    for launch in (multiply_launch(A, X, tf32=tf32), factor_gradient_launch(A, X, G, tf32=tf32)):
        made = launch.compile(capability)
        print(f"sm_{capability}, tf32={tf32}: {made.registers} registers, {made.shared} bytes shared")
        assert made.cubin.startswith(b"\x7fELF")
        assert made.registers <= 255
        assert made.spilled == 0
