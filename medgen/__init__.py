"""Train a generator of medical studies, sample a labelled dataset, learn whether it helps."""

__version__ = "0.1.0"
