"""Compiled loops for plugins: numba, with IEEE division and a disk cache that never runs stale.

``kernel`` marks what Python calls, ``inner`` what only kernels call. Importing this imports numba:
import the module that holds your kernels where they are used. The cache is keyed by all ``.py``
files in the kernel's folder, so kernels must be built from what lies there.
"""

from qconv.kernels.jit import inner, kernel

__all__ = ["inner", "kernel"]
