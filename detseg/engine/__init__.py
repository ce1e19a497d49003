"""The native training engine: one plain loop and the few parts that it is made of."""
