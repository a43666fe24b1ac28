"""Clips that are segmented from their first labels, and the scores of label maps."""
