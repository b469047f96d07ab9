"""Volumes in memory, the square canvas that a black box sees, intensity windows and metrics."""
