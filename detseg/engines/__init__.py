"""The choice of the engine for a configuration, and validation for it."""
