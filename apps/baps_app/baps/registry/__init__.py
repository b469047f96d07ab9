"""Adapters on disk: versions by label, one of them published."""
