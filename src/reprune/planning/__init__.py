"""What a run will do: recipe, windows, calibration samples. Knows models, but runs nothing."""
