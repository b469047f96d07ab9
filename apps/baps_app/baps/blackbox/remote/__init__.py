"""Promptable models on other machines, asked through the Open Inference Protocol."""
