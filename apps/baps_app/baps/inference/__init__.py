"""Segment from clicks: one slice, a whole organ, and the slices that are likely to be requested next."""
