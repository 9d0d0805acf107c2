"""Known truth: physics-based phantoms."""
