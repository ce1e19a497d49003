"""The page of one or several trainings: the content of their run folders as one HTML file."""
