"""Finds, loads and runs the blocks of any Transformers decoder. Knows nothing of pruning."""
