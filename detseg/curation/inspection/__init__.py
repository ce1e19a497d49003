"""Inspection of a data set: its content, its problems, and suitable settings. Numbers only; `report` draws figures.

`gather` measures, with `measure` for objects and intensities; `numbers` and `problems` make the report; `advice` and
`advise_*` make the suggestions.
"""
