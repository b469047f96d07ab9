"""Optimise without gradients: the optimisers read losses only."""
