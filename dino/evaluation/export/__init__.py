"""Features written to one file for other programs."""
