"""How the bundled organ model was trained."""
