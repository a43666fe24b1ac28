"""The linear probe: a linear classifier on frozen features."""
