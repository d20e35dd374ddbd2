"""The settings of all commands: declared, read from the environment and flags, and shown without secrets."""
