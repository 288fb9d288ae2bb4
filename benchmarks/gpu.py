"""Triton's kernels beside KeOps and tiles of cuBLAS on a GPU; without one, what the compiler says of them."""

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from benchmarks.harness import Case, Figures, Results, Run, Suite, Table
from benchmarks.tables import against, duration
from gpmoe.linalg.fused import MATERN12, MATERN32, MATERN52, RATIONAL_QUADRATIC, RBF
from gpmoe.linalg.stationary import Leaf, Packed, Term, pack
from gpmoe.linalg.triton_compiler import AVAILABLE, INTERPRETED, Launch
from gpmoe.linalg.triton_kronecker import factor_gradient_launch, kron_matmul, multiply_launch
from gpmoe.linalg.triton_product import gradient_launch, product_launch, triton_product

NAME, KRONECKER = "covariance product", "Kronecker product"
FAMILIES = {"rbf": RBF, "matern12": MATERN12, "matern32": MATERN32, "matern52": MATERN52, "rq": RATIONAL_QUADRATIC}
TILE_BYTES = 2**30  # of cuBLAS's rows of K at a time


@cache
def gpu() -> str:
    """Name of the GPU, empty without one, which is said once."""
    if AVAILABLE and not INTERPRETED and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    print("gpu: no timings: they need a CUDA GPU and Triton (and no TRITON_INTERPRET)", flush=True)
    return ""


def problem(n: int, d: int, columns: int) -> tuple[Tensor, Tensor]:
    """Scaled inputs and right-hand sides on the GPU."""
    generator = torch.Generator("cuda").manual_seed(0)
    Z = torch.randn(n, d, device="cuda", generator=generator) / 1.5
    return Z, torch.randn(n, columns, device="cuda", generator=generator)


def covariance(kernel: str, r2: Tensor) -> Tensor:
    """k(r2) of a tensor, or of a lazy tensor of KeOps."""
    if kernel == "rbf":
        return (-r2 / 2).exp()
    s = (5 * r2).sqrt()
    return (1 + s + s * s / 3) * (-s).exp()


def by_triton(kernel: str, Z: Tensor, V: Tensor, tf32: bool = False) -> Tensor:
    """K V by the fused kernel."""
    return triton_product(pack([Term(None, (Leaf(FAMILIES[kernel], Z, None),))]), V, tf32=tf32)


def by_keops(kernel: str, Z: Tensor, V: Tensor) -> Tensor:
    """K V as KeOps's users write it."""
    from pykeops.torch import LazyTensor

    r2 = ((LazyTensor(Z[:, None]) - LazyTensor(Z[None])) ** 2).sum(-1)
    product: Tensor = covariance(kernel, r2) @ V
    return product


def by_cublas(kernel: str, Z: Tensor, V: Tensor) -> Tensor:
    """K V by row blocks, |a|² + |b|² - 2ab and the product as matrix products."""
    norms = (Z * Z).sum(-1)
    rows = max(1, TILE_BYTES // (4 * len(Z)))
    parts = []
    for z, norm in zip(Z.split(rows), norms.split(rows), strict=True):
        r2 = torch.addmm(norm[:, None] + norms, z, Z.mT, alpha=-2).clamp_min(0 if kernel == "rbf" else 1e-12)
        parts.append(covariance(kernel, r2) @ V)
    return torch.cat(parts)


LIBRARIES: dict[str, Callable[[str, Tensor, Tensor], Tensor]] = {
    "gpmoe": by_triton,
    "gpmoe, tf32": partial(by_triton, tf32=True),
    "KeOps": by_keops,
    "cuBLAS tiles": by_cublas,
}


def product_step(library: str, kernel: str, n: int, d: int, columns: int, gradient: bool) -> Run:
    """One product, with its gradients for Z and V where asked; its error at 64 rows, from float64."""
    Z, V = problem(n, d, columns)
    tensors = [tensor.requires_grad_(gradient) for tensor in (Z, V)]

    def step() -> Tensor:
        product = LIBRARIES[library](kernel, Z, V)
        if gradient:
            torch.autograd.grad(product.square().sum(), tensors)
        torch.cuda.synchronize()
        return product.detach()

    def figures(product: Tensor) -> Figures:
        z, v = Z.detach().double(), V.detach().double()
        want = covariance(kernel, ((z[:64, None] - z) ** 2).sum(-1)) @ v
        return {"gpu": gpu(), "error": float((product[:64] - want).abs().max() / want.abs().max())}

    return Run(step, figures)


def kronecker_step(library: str, size: int, columns: int) -> Run:
    """Three factors of one size; cuBLAS by torch.matmul on reshaped tensors."""
    generator = torch.Generator("cuda").manual_seed(0)
    factors = [torch.randn(size, size, device="cuda", generator=generator) for _ in range(3)]
    V = torch.randn(size**3, columns, device="cuda", generator=generator)

    def step() -> Tensor:
        if library == "gpmoe":
            product = kron_matmul(factors, V)
        else:
            product, right = V, columns
            for A in reversed(factors):
                product, right = torch.matmul(A, product.reshape(-1, size, right)), right * size
        torch.cuda.synchronize()
        return product

    return Run(step, lambda product: {"gpu": gpu()})


def groups(small: bool) -> list[list[Case]]:
    """Cases side by side, empty without a GPU."""
    if not gpu():
        return []
    sizes = (2_000,) if small else (50_000, 200_000)
    parameters = [
        {"kernel": kernel, "n": n, "d": d, "columns": columns, "gradient": gradient}
        for kernel in ("rbf", "matern52")
        for n in sizes
        for d in ((8,) if small else (3, 8, 32))
        for columns in (1, 16, 64)
        for gradient in (False, True)
    ]
    products = [
        [Case(NAME, library, partial(product_step, library), each, at_least=0.2) for library in LIBRARIES]
        for each in parameters
    ]
    grids = [
        [
            Case(KRONECKER, library, partial(kronecker_step, library), {"size": size, "columns": columns}, at_least=0.2)
            for library in ("gpmoe", "cuBLAS")
        ]
        for size in ((16,) if small else (32, 100, 200))
        for columns in (1, 16)
    ]
    return products + grids


def cases(small: bool) -> list[Case]:
    return [case for group in groups(small) for case in group]


def timings(results: Results, small: bool) -> list[Table]:
    """A row for each case; none without a GPU."""
    rows = []
    for group in groups(small):
        ours = group[0]
        for case in group:
            label = case.label.removesuffix(case.library)
            speed = f"{ours.parameters['n'] ** 2 / results.median(case) / 1e9:.0f}" if case.name == NAME else ""
            ratio = "" if case is ours else against(results, ours, case)
            error = f"{results.median(case, 'error'):.1e}" if case.name == NAME else ""
            rows.append([label, case.library, duration(results.median(case)), speed, error, ratio])
    header = ["problem", "library", "time", "10^9 pairs/s", "error", "library / gpmoe"]
    notes = [f"{gpu()}; float32; the error is the largest of 64 rows, relative to the largest value."]
    return [Table("On a GPU", header, rows, notes)] if rows else []


def packed(family: int, d: int, dtype: torch.dtype) -> Packed:
    """A single leaf of 256 points at zero; what the compiler makes depends on shapes alone."""
    return pack([Term(None, (Leaf(family, torch.zeros(256, d, dtype=dtype), None),))])


def launches(small: bool) -> dict[str, Launch]:
    """Kernels whose registers are worth knowing."""
    made: dict[str, Launch] = {}
    for dtype in (torch.float32,) if small else (torch.float32, torch.float64):
        kind = str(dtype).removeprefix("torch.")
        brief = small or dtype is torch.float64
        for name, family in {"rbf": RBF}.items() if brief else FAMILIES.items():
            for d, c in ((8, 1),) if small or name != "rbf" else ((8, 1), (8, 4), (8, 64), (64, 1), (64, 64)):
                V = torch.zeros(c, 256, dtype=dtype)
                label = f"{kind}, {name}, d = {d}, columns = {c}"
                made[f"product, {label}"] = product_launch(packed(family, d, dtype), V)
                made[f"gradient, {label}"] = gradient_launch(packed(family, d, dtype), V, V, 0, 0)
        A, X = torch.zeros(100, 100, dtype=dtype), torch.zeros(64, 100, 64, dtype=dtype)
        made[f"Kronecker, {kind}, 100 x 100"] = multiply_launch(A, X)
        made[f"Kronecker, gradient, {kind}, 100 x 100"] = factor_gradient_launch(A, X, X)
    return made


def resources(small: bool) -> list[Table]:
    """Registers and shared memory, by the compiler; a line without Triton."""
    if not AVAILABLE or INTERPRETED:
        return [Table("Ahead of time", ["kernel"], [], ["Skipped: needs Triton, and no TRITON_INTERPRET."])]
    rows = []
    for label, launch in launches(small).items():
        made = [launch.compile(capability) for capability in (80, 90)]
        rows.append([label, *(f"{one.registers} / {one.spilled} / {one.shared}" for one in made)])
        print("gpu:", " | ".join(rows[-1]), flush=True)
    notes = ["Registers and spilled bytes of a thread, shared bytes of a block of 128 threads, from the cubin."]
    return [Table("Ahead of time", ["kernel", "sm_80", "sm_90"], rows, notes)]


def tables(results: Results, small: bool) -> list[Table]:
    return timings(results, small) + resources(small)


SUITE = Suite("gpu", cases, tables)
