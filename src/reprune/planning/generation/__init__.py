"""Calibration data that the dense model writes itself: which texts are begun, which are kept, and why."""
