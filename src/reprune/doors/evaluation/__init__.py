"""Measures of a model on a text: perplexity by named protocols, errors against the dense model."""
