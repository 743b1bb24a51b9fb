"""Placeholder until written: testing."""
