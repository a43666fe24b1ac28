"""Pre-training: loss, schedules, optimizer, step and loop."""
