"""A model to a dataset on disk."""
