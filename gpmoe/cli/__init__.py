"""The command line."""

from gpmoe.cli.command_line import main

__all__ = ["main"]
