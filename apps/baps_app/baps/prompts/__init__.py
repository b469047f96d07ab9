"""Represent what a user draws on an image: clicks, boxes and scribbles, and simulate them."""

from .prompt import Point, Prompt

__all__ = ["Point", "Prompt"]
