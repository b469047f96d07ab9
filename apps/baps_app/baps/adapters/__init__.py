"""Adapters: what surrounds a black box so that it does better on the images of one site."""
