"""Export features to one file for other programs."""
