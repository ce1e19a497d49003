"""Mending masks that annotation tools have damaged.

One file a group of rules (`holes`, `crumbs`, `fragments`, `overlaps`, `wrong_class`), each of functions that find and
functions that mend; `image` applies them to one image until nothing changes, `coco_file` to a file.
"""

from detseg.curation.repair.masks import fill_holes

__all__ = ["fill_holes"]
