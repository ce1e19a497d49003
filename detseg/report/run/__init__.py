"""The page of one training or of several: what their folders hold, as one HTML file."""
