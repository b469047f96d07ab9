"""Labels that come in: checked, saved, read back, disputed, imported and pruned."""
