"""Placeholder until written: grids."""
