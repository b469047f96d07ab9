"""Optimisers that read losses alone."""
