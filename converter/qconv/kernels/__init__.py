"""The hot loops: numba on the CPU, torch elsewhere. Nothing here is public; nothing is imported early."""
