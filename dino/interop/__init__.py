"""Older names of the commands that convert weights to or from another project's format."""
