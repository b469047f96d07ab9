"""Train the bundled promptable model."""
