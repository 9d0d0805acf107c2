"""Real studies against synthetic ones."""
