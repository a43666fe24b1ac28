"""One run of a command: processes, seeds, log lines."""
