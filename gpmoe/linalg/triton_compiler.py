"""Triton where it is installed: kernels, their launches, and what the compiler makes of them without a GPU.

Without Triton, what is marked for compilation is left as it is and never called: `expect_triton` says so first.
A kernel runs on CUDA tensors, or on any tensors when the process started with ``TRITON_INTERPRET=1``, slowly, to test
it. A `Launch` is a kernel with its arguments and tuning; the one object runs it and compiles it ahead of time, so
that what the figures of the compiler describe is what runs.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpmoe.errors import DtypeError, MissingPackageError

try:
    import triton  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from triton import jit
    from triton import language as tl
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped, import-not-found, unused-ignore]
    from triton.compiler import ASTSource  # type: ignore[import-untyped, import-not-found, unused-ignore]

    AVAILABLE, INTERPRETED = True, bool(triton.knobs.runtime.interpret)
except ModuleNotFoundError:

    class tl:  # type: ignore[no-redef]
        """What signatures name of Triton's language."""

        constexpr = Any

    def jit(function: Any) -> Any:
        """Leave a function as it is."""
        return function

    AVAILABLE, INTERPRETED = False, False

__all__ = ["AVAILABLE", "INTERPRETED", "Launch", "Resources", "expect_triton", "jit", "tl"]

_POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64"}


def expect_triton(tensor: Tensor) -> None:
    """Check that Triton is there, and can reach a tensor.

    Args:
        tensor: any shape.

    Raises:
        MissingPackageError: if Triton is not installed.
        DtypeError: if the tensor lies where Triton's kernels can't run.
    """
    if not AVAILABLE:
        raise MissingPackageError("engine='triton' needs Triton. Type: pip install 'gpmoe[gpu]'.")
    if not (tensor.is_cuda or INTERPRETED):
        raise DtypeError(
            f"engine='triton' runs on CUDA tensors; got one on {tensor.device}. Move the data: `X.cuda()`; or use "
            "engine='fused', which is made for the CPU. (TRITON_INTERPRET=1 runs Triton's kernels on the CPU, to test.)"
        )


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers and spilled bytes of a thread, shared bytes of a block of threads."""

    registers: int
    spilled: int
    shared: int
    cubin: bytes


@dataclass(frozen=True)
class Launch:
    """A kernel with all that it is called with.

    Attributes:
        kernel: what `jit` made.
        grid: programs along each axis.
        arguments: tensors and integers, by name, in the order of the kernel's signature.
        constants: values that are compiled into the kernel, by name.
        warps: groups of 32 threads in a program.
        stages: loads that a loop keeps under way.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Tensor | int]
    constants: Mapping[str, Any]
    warps: int = 4
    stages: int = 3

    def run(self, output: str) -> Tensor:
        """Start the kernel on the device of its tensors, and return the one that it writes into."""
        written = self.arguments[output]
        assert isinstance(written, Tensor)
        with torch.cuda.device(written.device) if written.is_cuda else nullcontext():
            self.kernel[self.grid](**self.arguments, **self.constants, **self.options)
        return written

    @property
    def options(self) -> dict[str, Any]:
        """How the compiler is told to build the kernel."""
        return {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}

    def compile(self, capability: int) -> Resources:
        """Compile for an NVIDIA GPU that need not be there, as `run` would on it.

        Args:
            capability: compute capability without its dot: 80 for A100, 90 for H100.
        """
        expect_triton_compiles()
        names = self.kernel.arg_names
        ones = {name: 1 for name, value in self.arguments.items() if isinstance(value, int) and value == 1}
        given = {name: value for name, value in self.arguments.items() if name not in ones}
        whole = [name for name, value in given.items() if isinstance(value, Tensor) or value % 16 == 0]
        source = ASTSource(
            self.kernel,
            {name: _type(given[name]) if name in given else "constexpr" for name in names},
            constexprs={**self.constants, **ones},
            attrs={(names.index(name),): [["tt.divisibility", 16]] for name in whole},
        )
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=self.options)
        cubin = compiled.asm["cubin"]
        registers, spilled = _usage(cubin)
        return Resources(registers, spilled, compiled.metadata.shared, cubin)


def expect_triton_compiles() -> None:
    """Check that kernels can be compiled in this process.

    Raises:
        MissingPackageError: if Triton is not installed, or was told to interpret.
    """
    if not AVAILABLE or INTERPRETED:
        raise MissingPackageError(
            "compiling needs Triton, in a process that was not started with TRITON_INTERPRET=1. "
            "Type: pip install 'gpmoe[gpu]'."
        )


def _type(value: Tensor | int) -> str:
    return _POINTERS[value.dtype] if isinstance(value, Tensor) else "i32"


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread, as cuobjdump of Triton's wheel reads them."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        text = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])
