"""Products of a covariance with vectors, beside KeOps: time, pairs a second, share of the roofline, memory, growth."""

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel

from benchmarks.harness import Case, Figures, Results, Run, Suite, Table
from benchmarks.machine import cores
from benchmarks.tables import against, duration, number, verdict
from gpmoe.linalg.covariance_product import covariance_product

NAME, MEMORY, GROWTH = "product", "peak memory of a product", "growth of a product"
BARS = {1: 15.0, 16: 8.0}
MOST_MEGABYTES = 600
PEAK_OF_CORE = 90e9  # float32 operations a second of one AVX2 core at about 2.8 GHz, two fused multiply-adds a cycle
OPERATIONS = {"RBF": 14, "Matérn-5/2": 24}  # a pair, beyond 3 for each input and 2 for each column
KERNELS: dict[str, Callable[[], Kernel]] = {"RBF": RBFKernel, "Matérn-5/2": lambda: MaternKernel(nu=2.5)}


def problem(kernel: str, n: int, d: int, t: int) -> tuple[Kernel, torch.Tensor, torch.Tensor]:
    """A kernel of unit lengthscale, inputs and columns, float32."""
    generator = torch.Generator().manual_seed(0)
    made = KERNELS[kernel]()
    made.lengthscale = 1.0
    return made, torch.randn(n, d, generator=generator), torch.randn(n, t, generator=generator)


def first_entries(result: torch.Tensor) -> Figures:
    """To compare libraries by."""
    return {"entries": result[:20, 0].tolist()}


def gpmoe_step(kernel: str, n: int, d: int, t: int) -> Run:
    made, X, V = problem(kernel, n, d, t)

    def step() -> torch.Tensor:
        with torch.no_grad():
            return covariance_product(made, X, None, V)

    return Run(step, first_entries)


def gpmoe_memory(kernel: str, n: int, d: int, t: int) -> Run:
    run = gpmoe_step(kernel, n, d, t)
    gpmoe_step(kernel, 600, d, t).step()  # compiles
    return run


def keops_step(kernel: str, n: int, d: int, t: int) -> Run:
    from pykeops.torch import LazyTensor

    _, X, V = problem(kernel, n, d, t)

    def step() -> Any:
        r2 = ((LazyTensor(X[:, None, :]) - LazyTensor(X[None, :, :])) ** 2).sum(-1)
        if kernel == "RBF":
            return (-r2 / 2).exp() @ V
        s = (5 * r2).sqrt()
        return ((1 + s + s * s / 3) * (-s).exp()) @ V

    return Run(step, first_entries)


LIBRARIES: dict[str, Callable[..., Run]] = {"gpmoe": gpmoe_step, "KeOps": keops_step}


def sizes(small: bool) -> list[dict[str, Any]]:
    return [
        {"kernel": kernel, "n": n, "d": d, "t": t}
        for kernel in KERNELS
        for n in ((1000,) if small else (20_000, 50_000))
        for d in (3, 8)
        for t in BARS
    ]


def case(library: str, parameters: dict[str, Any]) -> Case:
    repetitions = 3 if library == "gpmoe" or parameters["n"] < 50_000 else 1
    return Case(NAME, library, LIBRARIES[library], parameters, repetitions=repetitions)


def memory_case(small: bool) -> Case:
    parameters = {"kernel": "RBF", "n": 1000 if small else 50_000, "d": 8, "t": 16}
    return Case(MEMORY, "gpmoe", gpmoe_memory, parameters, repetitions=1, warm_up=0, isolated=True)


def growth_cases(small: bool) -> list[Case]:
    ns = (500, 1000) if small else (10_000, 20_000, 40_000)
    return [Case(GROWTH, "gpmoe", gpmoe_step, {"kernel": "RBF", "n": n, "d": 3, "t": 1}) for n in ns]


def cases(small: bool) -> list[Case]:
    names = list(LIBRARIES)
    if importlib.util.find_spec("pykeops") is None:
        print("large_products: KeOps is not installed and is skipped: pip install pykeops", flush=True)
        names.remove("KeOps")
    measured = [case(name, parameters) for parameters in sizes(small) for name in names]
    return [*measured, memory_case(small), *growth_cases(small)]


def difference(results: Results, parameters: dict[str, Any]) -> str:
    runs = [results.runs(case(name, parameters)) for name in LIBRARIES]
    if not all(runs):
        return "-"
    ours, theirs = (torch.tensor(found[0]["entries"]) for found in runs)
    return f"{float((ours - theirs).abs().max() / theirs.abs().max()):.1e}"


def tables(results: Results, small: bool) -> list[Table]:
    rows = []
    for p in sizes(small):
        ours, peer = (case(name, p) for name in LIBRARIES)
        seconds = results.median(ours)
        pairs = p["n"] ** 2 / seconds
        operations = OPERATIONS[p["kernel"]] + 3 * p["d"] + 2 * p["t"]
        bar = None if small else BARS[p["t"]]
        rows.append([
            *(f"{value:,}" if isinstance(value, int) else value for value in p.values()),
            duration(seconds),
            duration(results.median(peer)),
            against(results, ours, peer, bar),
            number(pairs / 1e9, ".2f"),
            number(100 * pairs * operations / (PEAK_OF_CORE * cores()), ".0f") + " %",
            difference(results, p),
        ])  # fmt: skip
    growth = growth_cases(small)
    first, last = growth[0], growth[-1]
    ratio = results.median(last) / results.median(first)
    exponent = math.log(ratio) / math.log(last.parameters["n"] / first.parameters["n"]) if ratio > 0 else float("nan")
    used = results.median(memory_case(small), "peak_bytes") / 1e6
    notes = (
        "Float32, K(X, X) V; all n² pairs are counted, of which the fused pass computes half.",
        "KeOps: LazyTensor formulas, after a first call that compiles.",
        f"Roofline: {PEAK_OF_CORE / 1e9:.0f} GFLOP/s a core, {cores()} cores; operations a pair: 3 d + 2 t +"
        f" {OPERATIONS['RBF']} (RBF) or {OPERATIONS['Matérn-5/2']} (Matérn-5/2); a symmetric half may pass 100 %.",
        f"Peak memory at n = 50,000, d = 8, 16 columns, beyond the data: {used:.0f} MB"
        + verdict(used, None if small else MOST_MEGABYTES, at_most=True),
        f"Time grows as n to the power {number(exponent, '.2f')} (RBF, d = 3, one column; 2 is wanted).",
    )
    header = ["kernel", "n", "d", "columns", "gpmoe", "KeOps", "KeOps / gpmoe", "10⁹ pairs/s", "roofline", "differ by"]
    return [Table("Covariance products", header, rows, notes)]


SUITE = Suite("large_products", cases, tables)
