"""Linear algebra of covariances: dense at the speed of LAPACK, and products, solves and structure beyond that."""

from gpmoe.linalg.conjugate_gradients import conjugate_gradients
from gpmoe.linalg.covariance_operator import CovarianceOperator, covariance_operator
from gpmoe.linalg.covariance_product import covariance_product
from gpmoe.linalg.factorisation import Workspace, cholesky_with_jitter_
from gpmoe.linalg.kronecker import KroneckerEigen, kronecker_matmul
from gpmoe.linalg.kronecker_operator import KroneckerOperator
from gpmoe.linalg.lanczos import log_determinant, trace_of
from gpmoe.linalg.lapack import provider, use_provider
from gpmoe.linalg.latent_kronecker import LatentKronecker
from gpmoe.linalg.likelihood import gaussian_log_likelihood
from gpmoe.linalg.low_rank import nystrom, pivoted_cholesky, randomly_pivoted_cholesky
from gpmoe.linalg.operator import DenseOperator, KernelOperator
from gpmoe.linalg.preconditioners import precondition
from gpmoe.linalg.product_plan import ProductPlan, plan_product
from gpmoe.linalg.ragged_blocks import solve_blocks
from gpmoe.linalg.series_batch import SeriesBatch
from gpmoe.linalg.small_batch import SmallGPs
from gpmoe.linalg.toeplitz import ToeplitzFactor

__all__ = [
    "CovarianceOperator",
    "DenseOperator",
    "KernelOperator",
    "KroneckerEigen",
    "KroneckerOperator",
    "LatentKronecker",
    "ProductPlan",
    "SeriesBatch",
    "SmallGPs",
    "ToeplitzFactor",
    "Workspace",
    "cholesky_with_jitter_",
    "conjugate_gradients",
    "covariance_operator",
    "covariance_product",
    "gaussian_log_likelihood",
    "kronecker_matmul",
    "log_determinant",
    "nystrom",
    "pivoted_cholesky",
    "plan_product",
    "precondition",
    "provider",
    "randomly_pivoted_cholesky",
    "solve_blocks",
    "trace_of",
    "use_provider",
]
