"""Query promptable models on other machines through the Open Inference Protocol."""
