"""Placeholder until written: kernels."""
