"""Small simulated data sets whose truth is known, for examples and tests."""

import numpy as np
from numpy.typing import NDArray


def simulate_two_regimes(
    n: int, seed: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A quiet slow curve that gives way to a loud fast one, with the gate's true probabilities.

    Each point comes from regime 0, ``N(0.5 x, 0.05^2)``, or regime 1, ``N(2 + sin(6 x), 0.3^2)``; the second has
    probability ``1 / (1 + exp(-4 x))``, and X is uniform on [-2, 2].

    Args:
        n: number of points.
        seed: of NumPy's generator; ``None`` draws afresh.

    Returns:
        ``X`` ``(n, 1)``, sorted; ``y`` ``(n,)``; ``gate_probs`` ``(n, 2)``, whose rows sum to one.

    Example:
        >>> X, y, gate_probs = simulate_two_regimes(200, seed=0)
        >>> X.shape, y.shape, gate_probs.shape
        ((200, 1), (200,), (200, 2))
    """
    generator = np.random.default_rng(seed)
    x = np.sort(generator.uniform(-2.0, 2.0, size=n))
    second = 1.0 / (1.0 + np.exp(-4.0 * x))
    chosen = generator.uniform(size=n) < second
    mean = np.where(chosen, 2.0 + np.sin(6.0 * x), 0.5 * x)
    stddev = np.where(chosen, 0.3, 0.05)
    y = mean + stddev * generator.standard_normal(n)
    return x[:, None], y, np.column_stack([1.0 - second, second])


def simulate_heteroscedastic(
    n: int, seed: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """A smooth curve whose noise grows along the input, with the true noise variance of each point.

    ``y ~ N(sin(2 pi x), noise)`` with ``noise = (0.02 + 0.5 x^2)^2``, and X is uniform on [0, 1].

    Args:
        n: number of points.
        seed: of NumPy's generator; ``None`` draws afresh.

    Returns:
        ``X`` ``(n, 1)``, sorted; ``y`` ``(n,)``; ``noise`` ``(n,)``, the variance of each ``y``.

    Example:
        >>> X, y, noise = simulate_heteroscedastic(100, seed=0)
        >>> bool(noise[0] < noise[-1])
        True
    """
    generator = np.random.default_rng(seed)
    x = np.sort(generator.uniform(size=n))
    noise = (0.02 + 0.5 * x**2) ** 2
    y = np.sin(2.0 * np.pi * x) + np.sqrt(noise) * generator.standard_normal(n)
    return x[:, None], y, noise
