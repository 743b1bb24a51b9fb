"""Placeholder until written: cli."""
