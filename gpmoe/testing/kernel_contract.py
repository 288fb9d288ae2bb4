"""What every covariance function must do to work anywhere in gpmoe."""

import pickle
from collections.abc import Callable

import torch
from gpytorch.kernels import Kernel
from torch import Tensor
from torch.distributions import MultivariateNormal
from torch.func import functional_call
from torch.testing import assert_close

from gpmoe.linalg.likelihood import gaussian_log_likelihood
from gpmoe.linalg.stationary import fill_covariance

Formula = Callable[[Tensor, Tensor], Tensor]


def check_kernel(
    make_kernel: Callable[[], Kernel], d: int, *, formula: Formula | None = None, n: int = 7, seed: int = 0
) -> None:
    """Run the whole contract on a kernel, in about a second.

    The matrix equals a double loop over pairs, is symmetric and positive semi-definite, its ``diag`` is its diagonal,
    a batch equals a loop, gradients for inputs and parameters equal finite differences, float32 stays float32, copies
    and pickles compute the same, inputs are left alone, and gpmoe's own covariance and likelihood agree with the
    dense matrix.

    Args:
        make_kernel: makes the kernel afresh, with the same parameters at each call and no batch dimensions.
        d: number of inputs.
        formula: k(x, x') of two ``(d,)`` points by another road, a 0-dimensional tensor; the kernel itself, called on
            one pair at a time, if None.
        n: number of points, drawn from a standard normal distribution.
        seed: of the points.

    Raises:
        AssertionError: naming the rule that is broken.

    Example:
        >>> from gpytorch.kernels import RBFKernel
        >>> check_kernel(RBFKernel, 2)
    """
    generator = torch.Generator().manual_seed(seed)
    X1, X2 = torch.randn(2, n, d, dtype=torch.float64, generator=generator)
    kernel = make_kernel().double().eval()
    _check_values(kernel, X1, X2, formula)
    _check_batches(kernel, X1, X2)
    _check_gradients(kernel, X1, X2)
    _check_copies(kernel, X1)
    _check_float32(make_kernel, X1)
    _check_fast_paths(kernel, X1, X2)


def _matrix(kernel: Kernel, X1: Tensor, X2: Tensor) -> Tensor:
    matrix: Tensor = kernel(X1, X2).to_dense()
    return matrix


def _same(got: Tensor, wanted: Tensor, rule: str, tolerance: float = 1e-10) -> None:
    assert_close(got, wanted, rtol=tolerance, atol=tolerance, msg=lambda text: f"{rule}\n{text}")


def _check_values(kernel: Kernel, X1: Tensor, X2: Tensor, formula: Formula | None) -> None:
    def pair(x1: Tensor, x2: Tensor) -> Tensor:
        return _matrix(kernel, x1[None], x2[None]).squeeze() if formula is None else formula(x1, x2)

    with torch.no_grad():
        before = X1.clone(), X2.clone()
        K, K_cross = _matrix(kernel, X1, X1), _matrix(kernel, X1, X2)
        untouched = torch.equal(X1, before[0]) and torch.equal(X2, before[1])
        assert untouched, "the kernel must not change its inputs"
        for got, other in ((K, X1), (K_cross, X2)):
            naive = torch.stack([torch.stack([pair(x1, x2) for x2 in other]) for x1 in X1])
            _same(got, naive, "the matrix must equal a double loop over pairs")
        _same(K, K.mT, "k(X, X) must be symmetric")
        _same(_matrix(kernel, X2, X1), K_cross.mT, "k(X2, X1) must be the transpose of k(X1, X2)")
        smallest = float(torch.linalg.eigvalsh(K).min())
        assert smallest >= -1e-10 * max(1.0, float(K.diagonal().max())), (
            f"k(X, X) must be positive semi-definite; its smallest eigenvalue is {smallest:.1e}"
        )
        _same(kernel(X1, diag=True), K.diagonal(), "`diag=True` must give the diagonal of k(X, X)")
        _same(kernel(X1, X2, diag=True), K_cross.diagonal(), "`diag=True` must give the diagonal of k(X1, X2)")


def _check_batches(kernel: Kernel, X1: Tensor, X2: Tensor) -> None:
    with torch.no_grad():
        both, swapped = torch.stack([X1, X2]), torch.stack([X2, X1])
        loop = torch.stack([_matrix(kernel, X1, X2), _matrix(kernel, X2, X1)])
        _same(_matrix(kernel, both, swapped), loop, "a batch must equal a loop")
        _same(
            kernel(both, swapped, diag=True), loop.diagonal(dim1=-2, dim2=-1), "a batch of diagonals must equal a loop"
        )


class _Matrix(torch.nn.Module):
    """A kernel as a module whose output is the dense matrix."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, X1: Tensor, X2: Tensor) -> Tensor:
        return _matrix(self.kernel, X1, X2)


def _check_gradients(kernel: Kernel, X1: Tensor, X2: Tensor) -> None:
    module = _Matrix(kernel)
    parameters = dict(module.named_parameters())

    def matrix(x1: Tensor, x2: Tensor, *values: Tensor) -> Tensor:
        result: Tensor = functional_call(module, dict(zip(parameters, values, strict=True)), (x1, x2))
        return result

    inputs = [tensor.detach().clone().requires_grad_() for tensor in (X1[:4], X2[:3], *parameters.values())]
    passed = torch.autograd.gradcheck(matrix, inputs, raise_exception=False)
    assert passed, "gradients for inputs and parameters must equal finite differences"


def _check_copies(kernel: Kernel, X: Tensor) -> None:
    try:
        copy = pickle.loads(pickle.dumps(kernel))
    except Exception as error:
        raise AssertionError(f"the kernel must pickle (no lambdas or local functions in it): {error}") from error
    with torch.no_grad():
        _same(_matrix(copy, X, X), _matrix(kernel, X, X), "a pickled kernel must compute the same")


def _check_float32(make_kernel: Callable[[], Kernel], X: Tensor) -> None:
    with torch.no_grad():
        single = _matrix(make_kernel().float().eval(), X.float(), X.float())
        assert single.dtype == torch.float32, f"float32 inputs must give a float32 matrix; got {single.dtype}"
        double = _matrix(make_kernel().double().eval(), X, X)
        _same(single.double(), double, "float32 must agree with float64", tolerance=1e-3)


def _check_fast_paths(kernel: Kernel, X1: Tensor, X2: Tensor) -> None:
    with torch.no_grad():
        K, K_cross = _matrix(kernel, X1, X1), _matrix(kernel, X1, X2)
        out = torch.empty_like(K_cross)
        fill_covariance(kernel, X1, X2, out)
        _same(out, K_cross, "gpmoe's covariance must equal the kernel's own matrix")
        fill_covariance(kernel, X1, None, out)
        _same(out.tril(), K.tril(), "gpmoe's covariance must equal the kernel's own matrix")
        noise = torch.full_like(X1[:, 0], 0.1)
        zero = torch.zeros_like(noise)
        density = MultivariateNormal(zero, K + noise.diag())
        wanted = density.log_prob(X2[:, 0])
        got = gaussian_log_likelihood(kernel, X1, X2[:, 0].contiguous(), noise)
        _same(got, wanted, "gpmoe's likelihood must equal the density by the dense matrix")
