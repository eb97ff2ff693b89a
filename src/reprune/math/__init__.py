"""Patterns, statistics, pruners and solvers. Knows tensors; knows nothing of models, files or recipes."""
