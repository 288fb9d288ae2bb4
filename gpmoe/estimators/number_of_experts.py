"""How many experts an estimator may have."""

from gpmoe.errors import InputError
from gpmoe.gates import Gate


def most_experts(gate: str | Gate) -> int:
    """The largest mixture that "auto" tries behind a gate."""
    return 2 if gate == "gp_probit" else 4


def expect_enough_rows(n_experts: int, n: int) -> None:
    """Check that there is a row for each expert.

    Raises:
        InputError: if there is not.
    """
    if n_experts > n:
        raise InputError(f"`n_experts` must be at most the number of rows; got n_experts={n_experts}, n_samples={n}.")
