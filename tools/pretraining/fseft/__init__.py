"""Train the bundled organ model."""
