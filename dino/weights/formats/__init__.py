"""One file for each form of weights that other projects read."""
