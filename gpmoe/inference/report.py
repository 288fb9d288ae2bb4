"""What a fit did."""

import warnings
from dataclasses import dataclass
from typing import Any

from gpmoe.errors import JitterWarning, NotConvergedWarning


@dataclass(frozen=True)
class FitReport:
    """What a fit did and how it ended.

    Attributes:
        objective_trace: the maximised objective after each iteration of the best start, nats; never empty: one value
            where the start was the top.
        iterations: of the best start.
        evaluations: of the objective, over all starts.
        converged: whether the best start met its tolerance.
        reason: why it stopped, in the optimiser's words.
        jitter: what was added to the covariance's diagonal at the result (0 if nothing), in the model's y².
        seconds: wall time.
        solver: how linear systems were solved, and by which LAPACK.
        starts: the objective that each start reached.
        usage: of a mixture by variational or hard EM: each expert's share of the points after each iteration of the
            best start, ``(iterations, k)``, for `plotting.usage_curves`; empty for other models.
    """

    objective_trace: tuple[float, ...]
    iterations: int
    evaluations: int
    converged: bool
    reason: str
    jitter: float
    seconds: float
    solver: str
    starts: tuple[float, ...]
    usage: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "FitReport":
        """The inverse of `dataclasses.asdict`, lists for tuples allowed."""
        usage = tuple(tuple(shares) for shares in data.get("usage", ()))
        trace, starts = tuple(data["objective_trace"]), tuple(data["starts"])
        return cls(**{**data, "objective_trace": trace, "starts": starts, "usage": usage})


def warn_about(report: FitReport, *, stacklevel: int) -> None:
    """Give at most one warning: that the fit did not converge, or else that it needed jitter."""
    if not report.converged:
        text = f"the fit stopped after {report.iterations} iterations before it converged: {report.reason}"
        warnings.warn(text, NotConvergedWarning, stacklevel=stacklevel)
    elif report.jitter:
        text = (
            f"the covariance needed a jitter of {report.jitter:.1e} on its diagonal to be positive definite; "
            "repeated rows of X with a noise variance near zero are the usual cause (raise the noise's lower bound)."
        )
        warnings.warn(text, JitterWarning, stacklevel=stacklevel)
