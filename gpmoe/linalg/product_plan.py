"""Which engine computes a covariance product, by a model of its time and memory, and why.

Seconds of one product are start + pairs · nanoseconds a pair / threads. The figures are rounded from timings in float32
on an AVX2 processor (Zen 3); float64 takes twice as long. They need to be right to a factor of two: engines differ by
more.
"""

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from gpmoe.errors import InputError, MissingPackageError, UnsupportedKernelError
from gpmoe.linalg import fused
from gpmoe.linalg.compiler import AVAILABLE
from gpmoe.linalg.stationary import Term, product_terms

Engine = Literal["dense", "fused", "tiled", "keops", "triton"]
Wanted = Literal["auto", "dense", "fused", "tiled", "keops", "triton"]

MOST_MEMORY = 2**30  # bytes that a kept matrix may take when `auto` decides


@dataclass(frozen=True)
class ProductPlan:
    """Which engine runs a covariance product, and what it is expected to take.

    Attributes:
        engine: the engine.
        reason: why, in words.
        seconds: estimated time of all the products asked for.
        memory: estimated bytes beyond inputs and outputs.

    Example:
        >>> import torch
        >>> from gpytorch.kernels import RBFKernel
        >>> plan_product(RBFKernel(), torch.zeros(1000, 2), engine="dense").reason
        'asked for'
    """

    engine: Engine
    reason: str
    seconds: float
    memory: int

    def __str__(self) -> str:
        return f"{self.engine} ({self.reason}; about {self.seconds:.2g} s, {self.memory / 1e6:.3g} MB)"


def plan_product(
    kernel: Kernel,
    X1: Tensor,
    X2: Tensor | None = None,
    *,
    columns: int = 1,
    products: int = 1,
    engine: Wanted = "auto",
) -> ProductPlan:
    """Decide which engine computes K(X1, X2) V.

    Args:
        kernel: any GPyTorch kernel.
        X1: ``(n, d)``; with batch dimensions only "dense" runs.
        X2: ``(m, d)``; None for X1 with itself.
        columns: of V.
        products: how many products with the same K follow: "dense" computes K once for all of them.
        engine: "auto" for the one with the least estimated time, among those whose memory is at most 1 GiB.

    Raises:
        InputError: for an unknown engine, or one that does not run on the inputs' device or batch dimensions.
        UnsupportedKernelError: if the engine does not know the kernel.
        MissingPackageError: if the engine's package is not installed.
    """
    terms = None
    if not batched(kernel, X1, X2) and len(X1):
        with torch.no_grad():
            terms = product_terms(kernel, X1, X2)
    return plan_terms(terms, kernel, X1, X2, columns=columns, products=products, engine=engine)


def batched(kernel: Kernel, X1: Tensor, X2: Tensor | None) -> bool:
    """Whether the kernel or the inputs have batch dimensions."""
    return X1.dim() > 2 or (X2 is not None and X2.dim() > 2) or len(kernel.batch_shape) > 0


def plan_terms(
    terms: list[Term] | None,
    kernel: Kernel,
    X1: Tensor,
    X2: Tensor | None,
    *,
    columns: int,
    products: int,
    engine: Wanted,
) -> ProductPlan:
    """As `plan_product`, of a kernel that is written out already; None for one that can't be."""
    if engine not in ("auto", *get_args(Engine)):
        raise InputError(f"`engine` must be 'auto' or one of {', '.join(get_args(Engine))}; got {engine!r}.")
    if batched(kernel, X1, X2):
        if engine not in ("auto", "dense"):
            raise InputError(
                f"engine={engine!r} takes no batch dimensions; use engine='dense', or loop over the batch."
            )
        memory = X1.shape[:-1].numel() * (X1 if X2 is None else X2).shape[-2] * X1.element_size()
        return ProductPlan("dense", "batch dimensions" if engine == "auto" else "asked for", float("nan"), memory)
    if engine != "auto":
        problem = _problem(engine, terms, X1)
        if problem is not None:
            raise problem
        return ProductPlan(engine, "asked for", *_estimate(engine, terms, X1, X2, columns, products))
    able = [name for name in get_args(Engine) if _problem(name, terms, X1) is None]
    costs = {name: _estimate(name, terms, X1, X2, columns, products) for name in able}
    fits = {name: cost for name, cost in costs.items() if cost[1] <= MOST_MEMORY or name == "tiled"}
    best: Engine = min(fits, key=lambda name: fits[name][0])
    others = [f"{name} {cost[0]:.2g} s" for name, cost in fits.items() if name != best]
    others += [f"{name} {cost[1] / 1e9:.2g} GB" for name, cost in costs.items() if name not in fits]
    return ProductPlan(best, f"fastest by estimate, against {', '.join(others)}", *fits[best])


def _problem(engine: Engine, terms: list[Term] | None, X1: Tensor) -> Exception | None:
    """Why an engine can't run; None if it can."""
    if engine in ("dense", "tiled"):
        return None
    if terms is None and len(X1):
        return UnsupportedKernelError(
            f"engine={engine!r} takes sums and products of RBF, Matérn, rational quadratic, periodic and (up to 64 "
            "terms) spectral mixture kernels; this kernel is another. Use engine='tiled', which takes any kernel."
        )
    if engine == "fused":
        if X1.device.type != "cpu":
            return InputError(f"engine='fused' runs on the CPU; the inputs are on {X1.device}. Use engine='triton'.")
        if not AVAILABLE:
            return MissingPackageError("engine='fused' needs Numba, which is not installed: pip install numba")
    if engine == "keops" and importlib.util.find_spec("pykeops") is None:
        return MissingPackageError("engine='keops' needs pykeops, which is not installed: pip install pykeops")
    if engine == "triton":
        if importlib.util.find_spec("triton") is None:
            return MissingPackageError("engine='triton' needs Triton, which is not installed: pip install triton")
        if not X1.is_cuda and not _interpreted():
            return InputError(f"engine='triton' runs on CUDA tensors; the inputs are on {X1.device}: `X.cuda()`.")
    return None


def _interpreted() -> bool:
    """Whether Triton runs in its interpreter, as in tests: then it takes tensors on the CPU, slowly."""
    return bool(importlib.import_module("triton").knobs.runtime.interpret)


def _estimate(
    engine: Engine, terms: list[Term] | None, X1: Tensor, X2: Tensor | None, columns: int, products: int
) -> tuple[float, int]:
    """Seconds and bytes."""
    n, m, size = len(X1), len(X1 if X2 is None else X2), X1.element_size()
    leaves = [leaf for term in terms or [] for leaf in term.leaves]
    rows = sum(leaf.Z1.shape[-1] for leaf in leaves) if leaves else X1.shape[-1]
    roots = sum(leaf.family != fused.RBF for leaf in leaves)
    slow = sum(leaf.family == fused.RATIONAL_QUADRATIC for leaf in leaves)
    width, half = size / 4, 0.5 if X2 is None else 1.0
    threads = torch.get_num_threads()
    entry = {  # nanoseconds an entry of K
        "fused": 0.15 + 0.03 * rows + 0.2 * len(leaves) + 0.3 * roots + 4.0 * slow,
        "dense": 3.0 + 0.3 * rows + 3.0 * max(1, len(leaves)),
        "keops": 8.0 + 0.5 * rows + 5.0 * max(1, len(leaves)) + columns,
        "triton": 0.01,
    }
    entry["tiled"] = entry["dense"]
    multiply = 0.03 * columns + (0.15 if engine == "dense" else 0.0)  # a kept matrix comes from memory
    pairs = n * m * width * 1e-9 / (1 if X1.is_cuda else threads)
    if X1.is_cuda and engine != "triton":
        pairs /= 200.0
    symmetric = half if engine in ("fused", "tiled") else 1.0
    start = {"fused": 5e-5, "dense": 3e-4, "tiled": 3e-4, "keops": 10.0, "triton": 1e-4 if X1.is_cuda else 1e3}[engine]
    assembled = 1 if engine == "dense" else products
    filling = entry["fused"] if engine == "dense" and products > 1 and terms and AVAILABLE else entry[engine]
    seconds = start + pairs * (assembled * filling * symmetric + products * multiply)
    memory = {"dense": 4 * n * m * size if products == 1 else n * m * size, "tiled": 4 * max(2**18, 32 * m) * size}
    kept = memory.get(engine, 8 * (n + m) * columns + 2**22)
    return seconds, kept
