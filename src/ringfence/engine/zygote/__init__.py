"""Zygotes: warmed interpreters that fork on request. One for guests, one per template for kernels."""
