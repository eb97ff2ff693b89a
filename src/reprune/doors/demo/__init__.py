"""The main job on a real model from the package index."""
