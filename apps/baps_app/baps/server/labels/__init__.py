"""Check, save, read back, import and prune labels."""
