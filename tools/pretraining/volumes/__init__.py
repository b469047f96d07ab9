"""Train the bundled volumetric model."""
