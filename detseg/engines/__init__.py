"""Which engine runs a configuration, and the validation of a configuration for it."""
