"""Every deliberate error and warning of the package.

Each class derives from `GPMoEError` (or `GPMoEWarning`) and from the built-in that a caller would
expect, so that both ``except GPMoEError`` and ``except ValueError`` work.
"""


class GPMoEError(Exception):
    """Something was asked for that gpmoe can't do; the text says what came, what was wanted and what to do."""


class InputError(GPMoEError, ValueError):
    """A value that a caller passed breaks a rule that the text names."""


class ShapeError(InputError):
    """Arrays whose shapes don't fit each other or the model."""


class NonFiniteError(InputError):
    """NaN or infinity where a finite number is needed; the text names the first row and column."""


class DtypeError(GPMoEError, TypeError):
    """A dtype that can't be used, or two dtypes or devices that differ."""


class DifferentiationError(GPMoEError, RuntimeError):
    """A derivative that gpmoe does not compute."""


class NotPositiveDefiniteError(GPMoEError, ValueError):
    """A covariance matrix without a Cholesky factor at the largest jitter allowed."""


class MemoryLimitError(GPMoEError, MemoryError):
    """An exact method that needs more memory than there is at hand."""


class FileFormatError(GPMoEError, ValueError):
    """A file that is not what it should be: truncated, tampered with, of another kind or version."""


class UnsupportedKernelError(GPMoEError, TypeError):
    """A kernel, prior or likelihood that the operation asked for does not know."""


class MissingPackageError(GPMoEError, ImportError):
    """An optional package that is not installed; the text gives the line to type."""


class GPMoEWarning(UserWarning):
    """The result is usable, but something about it should be known."""


class NotConvergedWarning(GPMoEWarning):
    """An optimiser stopped before it met its tolerance."""


class JitterWarning(GPMoEWarning):
    """A covariance needed more on its diagonal than the model put there."""


class SolverWarning(GPMoEWarning):
    """Linear systems are solved in another way than by default; the text says how and why."""
