"""The command line: parse, call the Python API, print."""

from ._run import main

__all__ = ["main"]
