"""Repair of common defects in annotated masks.

`rules` has the options and the list of changes; `masks` finds defects of single masks and `image` applies all rules to
an image until nothing changes; `coco_file` repairs a file.
"""
