"""Calibration data that the dense model writes itself: authors of texts, and the file that they fill."""
