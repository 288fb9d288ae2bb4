"""Covariances of regular grids: Toeplitz matrices, multiplied by FFT."""

import torch
from torch import Tensor

from gpmoe.shapes import expect_floating, expect_shape


class ToeplitzFactor:
    """A symmetric Toeplitz matrix, K_ij = c_|i-j|, as one factor of a Kronecker product.

    A stationary kernel on equally spaced points gives one. It is embedded in a circulant matrix of at least 2n - 1
    rows, which the Fourier basis diagonalises: a product costs O(n log n) a column, differentiable in c too.

    Args:
        column: c, the first column, ``(n,)``.

    Source: Wilson, Dann and Nickisch (2015), Thoughts on Massively Scalable Gaussian Processes, sec. 3.

    Example:
        >>> import torch
        >>> from gpmoe.linalg.kronecker import along_axes
        >>> K = ToeplitzFactor(torch.tensor([2.0, 1.0, 0.0]))
        >>> along_axes([K], torch.tensor([1.0, 0.0, 0.0]))
        tensor([2., 1., 0.])
    """

    def __init__(self, column: Tensor) -> None:
        expect_shape("column", column, ndim=1)
        expect_floating("column", column)
        self.column = column

    @property
    def shape(self) -> torch.Size:
        """``(n, n)``."""
        return torch.Size((len(self.column), len(self.column)))

    def along(self, T: Tensor, axis: int) -> Tensor:
        """K times an axis (negative) of a tensor ``(…, n, …)``."""
        n = len(self.column)
        size = 1 << (2 * n - 1).bit_length()  # room for 2n - 1, rounded up to a power of two
        zeros = self.column.new_zeros(size - 2 * n + 1)
        circulant = torch.cat([self.column, zeros, self.column[1:].flip(0)])
        spectrum = torch.fft.rfft(circulant).real  # symmetric, so real
        spectrum = spectrum.reshape((-1, *[1] * (-axis - 1)))
        product = torch.fft.irfft(torch.fft.rfft(T, size, dim=axis) * spectrum, size, dim=axis)
        return product.narrow(axis, 0, n).contiguous()

    def to_dense(self) -> Tensor:
        """The matrix, ``(n, n)``."""
        at = torch.arange(len(self.column), device=self.column.device)
        return self.column[(at.unsqueeze(-1) - at).abs()]
