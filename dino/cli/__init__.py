"""The command line: flags, recipes, exit codes."""
