"""Placeholder until written: checkpoint."""
