"""Adapt a black box on site from labelled volumes."""
