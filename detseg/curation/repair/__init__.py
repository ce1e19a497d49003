"""Mending masks that annotation tools have damaged.

`rules` has the switches and the list of changes, `masks` and `overlaps` find what is wrong with one mask and between
masks, `image` applies the rules to one image until nothing changes, `coco_file` to a file.
"""
