"""Calibration data that the dense model writes itself: how texts begin, and which are kept or rejected, and why."""
