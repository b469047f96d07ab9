"""Represent images in memory: volumes, label maps, the canvas that a black box sees, intensity windows and metrics."""
