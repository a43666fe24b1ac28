"""Weights: read in any form, checked, loaded, described, converted; one file for each format in `formats`."""
