"""Adapt a black box to a site's images: zoom, visual prompt, output head, and optimisers that need losses only."""
