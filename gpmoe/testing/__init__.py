"""Contracts that users may run on their own parts."""

from gpmoe.testing.kernel_contract import check_kernel

__all__ = ["check_kernel"]
