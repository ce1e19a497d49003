"""Reading images of any kind, whole or by parts."""
