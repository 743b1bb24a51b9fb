"""Placeholder until written: planning."""
