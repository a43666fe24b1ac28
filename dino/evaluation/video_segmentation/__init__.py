"""Segment clips from their first labels, and score label maps."""
