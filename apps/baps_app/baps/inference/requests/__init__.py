"""Parse and validate what viewers and the command line send."""
