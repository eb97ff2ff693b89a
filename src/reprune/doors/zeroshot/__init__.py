"""Zero-shot accuracy by lm-eval's tasks, on the Hub's rows or local ones."""
