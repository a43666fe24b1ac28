"""Weights in the form of other projects: one command each, both ways."""
