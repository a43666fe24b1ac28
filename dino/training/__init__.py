"""Pre-training: loss, schedules, optimiser, step and loop."""
