"""Weights from file to file: what is converted, to which form, and what other projects write."""
