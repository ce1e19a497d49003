"""A study: many trainings and what is made of them, as stages that run once, side by side, and are compared."""
