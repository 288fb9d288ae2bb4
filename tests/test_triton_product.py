"""Triton's covariance products: in its interpreter, compiled ahead of time for two GPUs, and refused without either."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from gpmoe.errors import DtypeError
from gpmoe.linalg.fused import MATERN52, RBF
from gpmoe.linalg.stationary import Leaf, Packed, Term, pack
from gpmoe.linalg.triton_compiler import AVAILABLE, Launch
from gpmoe.linalg.triton_product import gradient_launch, product_launch, triton_product

needs_triton = pytest.mark.skipif(not AVAILABLE, reason="Triton is not installed: pip install 'gpmoe[gpu]'")
SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a block of threads may take


def packed(family: int, d: int) -> Packed:
    return pack([Term(None, (Leaf(family, torch.zeros(256, d), None),))])


def product(c: int, d: int, tf32: bool = False) -> Launch:
    return product_launch(packed(MATERN52, d), torch.zeros(c, 256), tf32=tf32)


LAUNCHES: dict[str, Callable[[], Launch]] = {
    "few columns": lambda: product(1, 8),
    "many inputs": lambda: product(1, 64),
    "many columns": lambda: product(16, 8),
    "many columns by tensor cores": lambda: product(64, 8, tf32=True),
    "gradient": lambda: gradient_launch(packed(RBF, 8), *torch.zeros(2, 2, 256), 0, 0),
}


@needs_triton
def test_values_and_gradients_hold_in_the_interpreter(pass_in_interpreter: Callable[[str], None]) -> None:
    pass_in_interpreter("interpreted_triton_product.py")


@needs_triton
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", LAUNCHES)
def test_kernels_compile_ahead_of_time_without_spilling(name: str, capability: int) -> None:
    made = LAUNCHES[name]().compile(capability)
    print(f"sm_{capability}, {name}: {made.registers} registers, {made.shared} bytes shared")
    assert made.cubin.startswith(b"\x7fELF")
    assert made.registers <= 255
    assert made.spilled == 0
    assert made.shared <= SHARED[capability]


@needs_triton
def test_tensors_off_the_gpu_are_refused() -> None:
    with pytest.raises(DtypeError, match="runs on CUDA tensors"):
        triton_product(packed(RBF, 1), torch.zeros(256, 1))


def test_without_triton_the_line_to_type_is_given() -> None:
    code = """
import sys
sys.modules["triton"] = None
import torch
from gpmoe.errors import MissingPackageError
from gpmoe.linalg.triton_kronecker import kron_matmul
try:
    kron_matmul([torch.eye(2)], torch.ones(2, 1))
except MissingPackageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'gpmoe[gpu]'" in done.stdout, done.stderr
