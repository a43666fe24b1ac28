"""Pictures and videos of attention maps and segmentations."""
