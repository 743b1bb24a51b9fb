"""The hot loops: numba on the CPU, torch elsewhere. Not public, and not imported early."""
