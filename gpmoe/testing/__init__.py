"""Contracts that users may run on their own parts."""

from gpmoe.testing.gate_contract import check_gate
from gpmoe.testing.kernel_contract import check_kernel

__all__ = ["check_gate", "check_kernel"]
