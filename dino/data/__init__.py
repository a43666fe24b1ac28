"""The data pipeline: from image files to batches of views."""
