"""Preparing, repairing, splitting and inspecting data sets, and synthetic cells."""
