"""Conditions to vector, tokens and grid."""
