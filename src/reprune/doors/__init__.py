"""What users call: the Python API, the command line, evaluation and the demo."""
