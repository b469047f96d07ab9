"""What a person draws on an image: clicks, boxes and scribbles, and simulated ones."""

from .prompt import Point, Prompt

__all__ = ["Point", "Prompt"]
