"""What every prediction is: a vector of n univariate distributions, Gaussian, Student-t or a mixture of Gaussians.

All three are kept in one form, a mixture of k components that share a standard density f,

    p(y_n) = sum_k w_nk f((y_n - mu_nk) / s_nk) / s_nk,

where f is the standard normal, or, with k = 1, the standard Student-t with nu_n degrees of freedom.

| symbol | name in code | shape |
|---|---|---|
| w | ``weights`` | ``(n, k)``, rows sum to one |
| mu | ``locations`` | ``(n, k)``, units of y |
| s² | ``scales2`` | ``(n, k)``, units of y squared |
| nu | ``degrees_of_freedom`` | ``(n,)``, None for the normal |
| z | ``z`` | ``(..., n, k)``, standardised targets |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from gpmoe.distributions.checked_parameters import finite, normalised, positive, scalar_or_vector, shaped
from gpmoe.distributions.mixture_quantile import mixture_quantile
from gpmoe.distributions.standard_densities import (
    Array,
    mean_absolute,
    normal_log_density,
    student_t_crps,
    student_t_log_density,
)
from gpmoe.errors import InputError, ShapeError

if TYPE_CHECKING:
    import torch


@final
@dataclass(frozen=True, eq=False, repr=False)
class Predictive:
    """A vector of n univariate predictive distributions, in the units of y.

    Make one with `Predictive.gaussian`, `Predictive.student_t` or `Predictive.mixture`, which check what they
    are given; the bare constructor does not. Everything is float64, and the arrays inside are read-only.

    Targets ``y`` are a scalar, ``(n,)``, or anything that broadcasts to ``(m, n)``, for instance a grid
    ``(m, 1)``; a quantity of shape ``(n,)`` or ``(m, n)`` comes back. NaN in ``y`` gives NaN.

    Example:
        >>> predictive = Predictive.mixture([[0.25, 0.75]], [[-1.0, 3.0]], [[0.5, 1.0]])
        >>> predictive
        Predictive(mixture of 2 Gaussians, n=1)
        >>> predictive.mean.tolist(), predictive.variance.tolist()
        ([2.0], [3.875])
        >>> lower, upper = predictive.interval(0.9)
        >>> predictive.cdf(upper) - predictive.cdf(lower)
        array([0.9])
    """

    _weights: Array
    _locations: Array
    _scales2: Array
    _degrees_of_freedom: Array | None = None

    def __post_init__(self) -> None:
        for array in (self._weights, self._locations, self._scales2, self._degrees_of_freedom):
            if array is not None:
                array.setflags(write=False)

    @classmethod
    def gaussian(cls, mean: ArrayLike, variance: ArrayLike) -> Predictive:
        """Gaussian predictive distributions N(mean, variance).

        Args:
            mean: ``(n,)``, units of y.
            variance: noise included if y is meant, ``(n,)``, units of y squared, positive.

        Raises:
            ShapeError: if the two are not vectors of one length.
            NonFiniteError: if a mean is NaN or infinite; names the row.
            InputError: if a variance is not positive and finite; names the row and its value.

        Example:
            >>> Predictive.gaussian([0.0, 10.0], [1.0, 4.0]).stddev
            array([1., 2.])
        """
        locations = finite("mean", mean, ndim=1)
        scales2 = positive("variance", shaped("variance", variance, locations.shape, like="mean"))
        return cls(np.ones((len(locations), 1)), locations[:, None], scales2[:, None])

    @classmethod
    def student_t(cls, mean: ArrayLike, scale2: ArrayLike, degrees_of_freedom: ArrayLike) -> Predictive:
        """Student-t predictive distributions: mean + sqrt(scale2) T, with T standard Student-t.

        Args:
            mean: location, ``(n,)``, units of y; it is the mean where there is one (degrees of freedom > 1).
            scale2: squared scale, ``(n,)``, units of y squared, positive. The variance is larger:
                scale2 nu / (nu - 2), infinite for nu <= 2.
            degrees_of_freedom: nu > 0, finite, a scalar or ``(n,)``.

        Raises:
            ShapeError: if the lengths differ.
            NonFiniteError: if a mean is NaN or infinite; names the row.
            InputError: if a scale2 or nu is not positive and finite; names the row and its value.

        Example:
            >>> Predictive.student_t([1.0], [2.0], 4.0).variance
            array([4.])
        """
        locations = finite("mean", mean, ndim=1)
        scales2 = positive("scale2", shaped("scale2", scale2, locations.shape, like="mean"))
        nu = scalar_or_vector("degrees_of_freedom", degrees_of_freedom, len(locations))
        ones = np.ones((len(locations), 1))
        return cls(ones, locations[:, None], scales2[:, None], positive("degrees_of_freedom", nu))

    @classmethod
    def mixture(cls, weights: ArrayLike, component_means: ArrayLike, component_variances: ArrayLike) -> Predictive:
        """Mixtures of k Gaussians, sum_k weights_k N(component_means_k, component_variances_k).

        Args:
            weights: non-negative, ``(n, k)``; rows sum to one within 1e-6 and are then renormalised.
            component_means: ``(n, k)``, units of y.
            component_variances: ``(n, k)``, units of y squared, positive, also where the weight is zero.

        Raises:
            ShapeError: if the three are not matrices of one shape.
            NonFiniteError: if a mean or weight is NaN or infinite; names the row and component.
            InputError: if a weight is negative, a row of weights does not sum to one, or a variance is not
                positive and finite; names the first bad row and its value.

        Example:
            >>> Predictive.mixture([[0.5, 0.5]], [[-3.0, 3.0]], [[1.0, 1.0]]).variance
            array([10.])
        """
        locations = finite("component_means", component_means, ndim=2)
        w = finite("weights", shaped("weights", weights, locations.shape, like="component_means"), ndim=2)
        scales2 = shaped("component_variances", component_variances, locations.shape, like="component_means")
        return cls(normalised(w), locations, positive("component_variances", scales2))

    def __len__(self) -> int:
        return len(self._locations)

    def __getitem__(self, index: int | slice | Sequence[int] | NDArray[np.intp] | NDArray[np.bool_]) -> Predictive:
        """The distributions at some rows, as NumPy indexes a vector; one integer gives a vector of length one."""
        rows = np.atleast_1d(np.arange(len(self))[index])
        if rows.ndim != 1:
            raise ShapeError(f"an index must be an integer, a slice or a vector; got an array of shape {rows.shape}.")
        nu = self._degrees_of_freedom
        return Predictive(
            self._weights[rows], self._locations[rows], self._scales2[rows], None if nu is None else nu[rows]
        )

    def __repr__(self) -> str:
        k = self._weights.shape[1]
        kind = "Student-t" if self._degrees_of_freedom is not None else f"mixture of {k} Gaussians"
        return f"Predictive({'Gaussian' if kind == 'mixture of 1 Gaussians' else kind}, n={len(self)})"

    @property
    def mean(self) -> Array:
        """Mean, ``(n,)``, units of y; NaN for a Student-t with at most one degree of freedom."""
        mean: Array = (self._weights * self._locations).sum(-1)
        nu = self._degrees_of_freedom
        return mean if nu is None else np.where(nu > 1, mean, np.nan)

    @property
    def variance(self) -> Array:
        """Variance by the law of total variance, ``(n,)``, units of y squared; infinite for a Student-t, nu <= 2."""
        nu = self._degrees_of_freedom
        if nu is not None:
            return np.where(nu > 2, self._scales2[:, 0] * nu / np.where(nu > 2, nu - 2, 1.0), np.inf)
        between = (self._locations - self.mean[:, None]) ** 2
        variance: Array = (self._weights * (self._scales2 + between)).sum(-1)
        return variance

    @property
    def stddev(self) -> Array:
        """Standard deviation, ``(n,)``, units of y."""
        return np.sqrt(self.variance)

    @property
    def degrees_of_freedom(self) -> Array | None:
        """Degrees of freedom of a Student-t, ``(n,)``; None for Gaussians and mixtures of them."""
        return self._degrees_of_freedom

    @property
    def weights(self) -> Array:
        """Mixture weights, ``(n, k)``; ones with k = 1 for a Gaussian. InputError for a Student-t."""
        return self._gaussian_only(self._weights)

    @property
    def component_means(self) -> Array:
        """Means of the Gaussian components, ``(n, k)``, units of y. InputError for a Student-t."""
        return self._gaussian_only(self._locations)

    @property
    def component_variances(self) -> Array:
        """Variances of the Gaussian components, ``(n, k)``, units of y squared. InputError for a Student-t."""
        return self._gaussian_only(self._scales2)

    def quantile(self, q: ArrayLike) -> Array:
        """The y with cdf(y) = q, in units of y.

        A mixture's cdf is inverted to rounding error by Newton's method inside a shrinking bracket. Between
        components so far apart that the cdf is flat in double precision, some point of the flat piece comes back.

        Args:
            q: probabilities strictly between zero and one, a scalar or ``(m,)``.

        Returns:
            ``(n,)`` for a scalar, ``(m, n)`` for a vector.

        Raises:
            ShapeError: if q has more than one dimension.
            InputError: if a q is not strictly between zero and one.

        Example:
            >>> Predictive.gaussian([0.0, 5.0], [1.0, 1.0]).quantile([0.5, 0.975]).round(2)
            array([[0.  , 5.  ],
                   [1.96, 6.96]])
        """
        levels = np.asarray(q, dtype=np.float64)
        if levels.ndim > 1:
            raise ShapeError(f"`q` must be a scalar or have shape (m,); got {levels.shape}.")
        bad = levels[~((levels > 0) & (levels < 1))]
        if bad.size:
            raise InputError(f"`q` must lie strictly between 0 and 1; got {bad[0]}.")
        rows = [self._quantile(float(level)) for level in levels.ravel()]
        return np.reshape(rows, (*levels.shape, len(self)))

    def interval(self, coverage: float = 0.9) -> tuple[Array, Array]:
        """The equal-tailed interval that holds y with probability ``coverage``.

        Args:
            coverage: strictly between zero and one.

        Returns:
            Lower and upper end, each ``(n,)``, units of y.

        Raises:
            InputError: if coverage is not strictly between zero and one.
        """
        if not 0 < coverage < 1:
            raise InputError(f"`coverage` must lie strictly between 0 and 1; got {coverage}.")
        tail = 0.5 * (1.0 - coverage)
        return self._quantile(tail), self._quantile(1.0 - tail)

    def cdf(self, y: ArrayLike) -> Array:
        """Probability of a target of at most y, ``(n,)`` or ``(m, n)``."""
        z, nu = self._standardise(y)
        below: Array = (self._weights * (ndtr(z) if nu is None else stdtr(nu, z))).sum(-1)
        return below

    def log_prob(self, y: ArrayLike) -> Array:
        """Log density at y in nats (per unit of y), ``(n,)`` or ``(m, n)``, summed over components in log space."""
        z, nu = self._standardise(y)
        log_density = normal_log_density(z) if nu is None else student_t_log_density(z, nu)
        with np.errstate(divide="ignore"):
            log_weights = np.log(self._weights)
        joint: Array = log_weights + log_density - 0.5 * np.log(self._scales2)
        return np.asarray(np.logaddexp.reduce(joint, axis=-1))

    def crps(self, y: ArrayLike) -> Array:
        """Continuous ranked probability score, E|Y - y| - E|Y - Y'|/2, in units of y; smaller is better.

        Args:
            y: ``(n,)`` or broadcastable to ``(m, n)``, units of y.

        Returns:
            Closed form, ``(n,)`` or ``(m, n)``.

        Raises:
            InputError: for a Student-t with at most one degree of freedom, whose score is infinite.

        Source: Gneiting & Raftery (2007), sec. 4.2 (Gaussian); Grimit et al. (2006) (mixture);
            Jordan, Krueger & Lerch (2019), appendix A (Student-t).

        Example:
            >>> Predictive.gaussian([0.0], [1.0]).crps([0.0]).round(6)
            array([0.233695])
        """
        z, nu = self._standardise(y)
        s = np.sqrt(self._scales2)
        if nu is not None:
            score: Array = s[:, 0] * student_t_crps(z[..., 0], self._finite_mean_degrees_of_freedom())
            return score
        distance = (self._weights * s * mean_absolute(z)).sum(-1)
        return np.asarray(distance - 0.5 * self._mean_absolute_difference())

    def sample(self, n: int, generator: int | np.random.Generator | torch.Generator | None = None) -> Array:
        """Independent draws, ``(n, len(self))``, units of y.

        Args:
            n: number of draws of the whole vector.
            generator: an integer seed, a NumPy or a torch generator (which is advanced), or None for fresh chance.

        Example:
            >>> draws = Predictive.gaussian([0.0, 100.0], [1.0, 1.0]).sample(2000, generator=0)
            >>> draws.shape, bool(abs(draws.mean(0) - [0.0, 100.0]).max() < 0.1)
            ((2000, 2), True)
        """
        rng = _numpy_generator(generator)
        shape = (n, len(self))
        cumulative = self._weights.cumsum(-1)
        cumulative /= cumulative[:, -1:]
        uniform = rng.random(shape)
        component = np.zeros(shape, dtype=np.intp)
        for edge in cumulative[:, :-1].T:
            component += uniform >= edge
        nu = self._degrees_of_freedom
        noise = rng.standard_normal(shape) if nu is None else rng.standard_t(nu, shape)
        rows = np.arange(len(self))
        return np.asarray(self._locations[rows, component] + np.sqrt(self._scales2[rows, component]) * noise)

    def affine(self, scale: ArrayLike, shift: ArrayLike) -> Predictive:
        """The distribution of scale Y + shift, for instance back in the units of the data.

        Args:
            scale: non-zero, a scalar or ``(n,)``, new units over old.
            shift: a scalar or ``(n,)``, new units.

        Raises:
            ShapeError: if either is neither a scalar nor ``(n,)``.
            NonFiniteError: if either is NaN or infinite.
            InputError: if a scale is zero.

        Example:
            >>> Predictive.gaussian([20.0], [4.0]).affine(1.8, 32.0).mean  # Celsius to Fahrenheit
            array([68.])
        """
        a = finite("scale", scalar_or_vector("scale", scale, len(self)), ndim=1)
        b = finite("shift", scalar_or_vector("shift", shift, len(self)), ndim=1)
        scales2 = self._scales2 * positive("scale squared", a**2)[:, None]
        return Predictive(self._weights, a[:, None] * self._locations + b[:, None], scales2, self._degrees_of_freedom)

    def _gaussian_only(self, parameter: Array) -> Array:
        if self._degrees_of_freedom is not None:
            raise InputError(
                "a Student-t predictive has no Gaussian components; use `.mean`, `.variance` or `.quantile(q)`."
            )
        return parameter

    def _finite_mean_degrees_of_freedom(self) -> Array:
        nu = np.asarray(self._degrees_of_freedom)
        if (nu <= 1).any():
            row = int(np.argmax(nu <= 1))
            raise InputError(
                f"the CRPS of a Student-t needs more than one degree of freedom; row {row} has {nu[row]}. "
                "Its mean does not exist; use `log_prob` to score it."
            )
        return nu

    def _standardise(self, y: ArrayLike) -> tuple[Array, Array | None]:
        """z, ``(..., n, k)``, and the degrees of freedom as a column that fits it, ``(n, 1)``."""
        y = np.asarray(y, dtype=np.float64)
        n = len(self)
        if not (y.ndim == 0 or y.shape[-1] == n or (y.ndim > 1 and y.shape[-1] == 1)):
            raise ShapeError(f"`y` must be a scalar or have shape ({n},), (m, {n}) or (m, 1); got {y.shape}.")
        z = (y[..., None] - self._locations) / np.sqrt(self._scales2)
        nu = self._degrees_of_freedom
        return z, None if nu is None else nu[:, None]

    def _quantile(self, q: float) -> Array:
        if self._weights.shape[1] > 1:
            return mixture_quantile(self._weights, self._locations, np.sqrt(self._scales2), q)
        nu = self._degrees_of_freedom
        z = ndtri(q) if nu is None else np.sign(q - 0.5) * -stdtrit(nu, min(q, 1.0 - q))
        return np.asarray(self._locations[:, 0] + np.sqrt(self._scales2[:, 0]) * z)

    def _mean_absolute_difference(self) -> Array:
        """E|Y - Y'| of two independent draws of a mixture, ``(n,)``, one component against all at a time."""
        total = np.zeros(len(self))
        for w, mu, s2 in zip(self._weights.T, self._locations.T, self._scales2.T, strict=True):
            s = np.sqrt(self._scales2 + s2[:, None])
            z = (self._locations - mu[:, None]) / s
            total += w * (self._weights * s * mean_absolute(z)).sum(-1)
        return total


def _numpy_generator(generator: int | np.random.Generator | torch.Generator | None) -> np.random.Generator:
    if generator is None or isinstance(generator, int | np.integer | np.random.Generator):
        return np.random.default_rng(generator)
    import torch

    if not isinstance(generator, torch.Generator):
        raise InputError(
            f"`generator` must be None, an integer, a numpy.random.Generator or a torch.Generator; "
            f"got {type(generator).__name__}."
        )
    return np.random.default_rng(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
