"""The tasks: one command, one file."""
