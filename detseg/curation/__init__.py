"""Repairing, splitting and inspecting data sets, and synthetic cells."""
