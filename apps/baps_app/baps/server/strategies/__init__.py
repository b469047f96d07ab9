"""The strategies of Next Sample: which image to label next."""
