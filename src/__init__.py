"""Distill text-generation models with pseudo-targets."""

__version__ = "0.1.0"
