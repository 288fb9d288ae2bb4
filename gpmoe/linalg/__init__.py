"""Dense linear algebra at the speed of LAPACK, and the exact Gaussian likelihood on top of it."""

from gpmoe.linalg.factorisation import Workspace, cholesky_with_jitter_
from gpmoe.linalg.lapack import provider, use_provider
from gpmoe.linalg.likelihood import gaussian_log_likelihood

__all__ = ["Workspace", "cholesky_with_jitter_", "gaussian_log_likelihood", "provider", "use_provider"]
