"""Read images of any kind, whole or in parts."""
