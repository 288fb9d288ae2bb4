"""Convolved and spectral covariances between tasks: the integrals they come from, special cases, use in models."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from gpytorch.kernels import Kernel, RBFKernel, SpectralMixtureKernel
from numpy.typing import NDArray
from torch import Tensor

from gpmoe.errors import InputError
from gpmoe.inference import fit
from gpmoe.kernels import ConvolvedTaskKernel, FeatureKernel, FreeCoregionalisation, SpectralTaskKernel, TaskKernel
from gpmoe.models import ExactGP
from gpmoe.testing import check_kernel

Array = NDArray[np.float64]


def scattered(kernel: Kernel, seed: int = 0) -> Kernel:
    """The kernel at parameters of no special value."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in kernel.parameters():
        parameter.data += 0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return kernel


def convolved(d: int = 2, T: int = 3) -> Kernel:
    return scattered(ConvolvedTaskKernel(FreeCoregionalisation(T, rank=2), n_inputs=d))


def spectral(d: int = 2, T: int = 3) -> Kernel:
    return scattered(SpectralTaskKernel(T, d, n_components=2))


class LastSign(torch.nn.Module):
    """Rows (x, t) of points whose last coordinate, by its sign, is the task."""

    def forward(self, x: Tensor) -> Tensor:
        """``(*batch, n, d + 1)``."""
        return torch.cat([x[..., :-1], (x[..., -1:] > 0).to(x)], -1)


@pytest.mark.parametrize("make", [convolved, spectral])
def test_the_contract_of_kernels_is_kept(make: Callable[..., Kernel]) -> None:
    check_kernel(lambda: FeatureKernel(LastSign(), make(T=2)), 3)


def row(x: float, t: int) -> Tensor:
    return torch.tensor([[x, float(t)]], dtype=torch.float64)


def test_a_convolved_covariance_is_the_integral_over_both_smoothing_kernels() -> None:
    kernel = convolved(d=1)
    B, widths = kernel.tasks().detach().numpy(), kernel.lengthscales.detach().numpy()[:, 0] / math.sqrt(2)
    z = np.linspace(-30, 30, 60001)

    def smoothed(x: float, t: int) -> Array:  # its square integrates to one
        density = np.exp(-0.5 * ((x - z) / widths[t]) ** 2)
        scaled: Array = density / np.sqrt(np.trapezoid(density**2, z))
        return scaled

    for t, u, x, y in ((0, 1, 0.3, -0.4), (1, 2, 0.0, 0.0), (2, 0, 2.0, 0.5), (1, 1, 0.7, 0.0)):
        wanted = B[t, u] * np.trapezoid(smoothed(x, t) * smoothed(y, u), z)
        found = kernel(row(x, t), row(y, u)).to_dense()
        assert found.item() == pytest.approx(wanted, abs=1e-10)


def test_a_spectral_covariance_is_the_integral_over_its_spectrum() -> None:
    kernel = spectral(d=1)
    w, phases = kernel.amplitudes.detach().numpy(), kernel.phases.detach().numpy()
    parts = (kernel.means, kernel.scales, kernel.delays)
    means, scales, delays = (part.detach().numpy()[..., 0] for part in parts)
    frequency = np.linspace(-30, 30, 60001)

    def root(q: int, t: int, x: float) -> NDArray[np.complex128]:
        density = np.exp(-0.5 * ((frequency - means[q, t]) / scales[q, t]) ** 2)
        density /= np.sqrt(2 * np.pi) * scales[q, t]
        turned = 2 * np.pi * frequency * (x + delays[q, t]) + phases[q, t]
        made: NDArray[np.complex128] = w[q, t] * np.sqrt(density) * np.exp(1j * turned)
        return made

    for t, u, x, y in ((0, 1, 0.3, -0.4), (1, 2, 0.0, 0.0), (2, 0, 2.0, 0.5), (1, 1, 0.7, 0.0)):
        products = sum(root(q, t, x) * root(q, u, y).conj() for q in range(2))
        found = kernel(row(x, t), row(y, u)).to_dense()
        assert found.item() == pytest.approx(np.trapezoid(products, frequency).real, abs=1e-10)


def rows(n: int = 30, T: int = 3, d: int = 2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return torch.cat([x, torch.randint(T, (n, 1), generator=generator).double()], -1)


@pytest.mark.parametrize("make", [convolved, spectral])
def test_many_rows_have_a_positive_semidefinite_covariance(make: Callable[..., Kernel]) -> None:
    K = make()(rows(80)).to_dense().detach()
    assert torch.equal(K, K.mT)
    assert float(torch.linalg.eigvalsh(K).min()) > -1e-10


def test_equal_widths_are_the_intrinsic_model() -> None:
    kernel, X = convolved(), rows()
    kernel.lengthscales = torch.tensor([0.5, 1.5], dtype=torch.float64).repeat(3, 1)
    base = RBFKernel(ard_num_dims=2).double()
    base.lengthscale = torch.tensor([0.5, 1.5])
    assert torch.allclose(kernel(X).to_dense(), TaskKernel(base, kernel.tasks)(X).to_dense())


def test_one_task_is_a_spectral_mixture() -> None:
    kernel, X = spectral(d=1, T=1), rows(T=1, d=1)
    known = SpectralMixtureKernel(num_mixtures=2).double()
    known.mixture_weights = kernel.amplitudes[:, 0].detach().square()
    known.mixture_means, known.mixture_scales = kernel.means.detach(), kernel.scales.detach()
    assert torch.allclose(kernel(X).to_dense(), known(X[:, :-1]).to_dense())


def test_equal_spectra_differ_by_their_delay_alone() -> None:
    kernel = SpectralTaskKernel(2, 1)
    kernel.delays.data[0, 1] = 0.7
    late, early = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.3, 1.0]]).double()
    assert kernel(late, early).to_dense().item() == pytest.approx(1.0)
    assert kernel(late, late - early * 0).to_dense().item() == pytest.approx(1.0)


def test_an_exact_gp_learns_a_delay() -> None:
    """Of a sine, a delay and a phase are one angle."""
    x = torch.linspace(0, 6, 25, dtype=torch.float64)
    X = torch.stack([x.repeat(2), torch.arange(2.0).repeat_interleave(25).double()], -1)
    generator = torch.Generator().manual_seed(0)
    y = torch.cat([(2 * x).sin(), (2 * (x + 0.4)).sin()])
    kernel = SpectralTaskKernel(2, 1)
    fit(ExactGP(X, y + 0.1 * torch.randn(50, generator=generator, dtype=torch.float64), kernel=kernel, noise=0.01))
    kernel.requires_grad_(False)
    delay, phase = (float(part[0, 1] - part[0, 0]) for part in (kernel.delays, kernel.phases))
    frequency = float(kernel.means.mean())
    assert bool((kernel.amplitudes > 0).all())
    assert 2 * math.pi * frequency == pytest.approx(2.0, abs=0.05)
    assert 2 * math.pi * frequency * delay + phase == pytest.approx(0.8, abs=0.1)


def test_what_is_no_task_or_number_is_refused() -> None:
    with pytest.raises(InputError, match="must be a task, 0 to 2"):
        convolved()(rows(T=5)).to_dense()
    with pytest.raises(InputError, match="at least 1"):
        SpectralTaskKernel(0, 1)
    with pytest.raises(InputError, match="`n_inputs`"):
        ConvolvedTaskKernel(FreeCoregionalisation(2), n_inputs=0)
