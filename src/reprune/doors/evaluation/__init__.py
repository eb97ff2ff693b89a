"""What a model is worth on a text: perplexity by named protocols, errors against the dense model."""
