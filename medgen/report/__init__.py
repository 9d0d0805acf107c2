"""One self-contained page, and pictures."""
