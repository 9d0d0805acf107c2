"""Studies in: readers, files, splits, latents."""
