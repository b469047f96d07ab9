"""Provide helpers that know nothing about images: atomic writes, a cache, locks, limits, redaction."""
