"""Mean teacher: a student that learns from unlabelled images what the average of its own weights finds in them."""
