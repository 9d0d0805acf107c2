"""From the prior to data."""
