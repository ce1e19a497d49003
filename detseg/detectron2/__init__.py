"""Detectron2's models as `Segmenter`s, and the keys that Detectron2 supports.

Only this package and `engine.detectron2`, which trains, import Detectron2, and only if MODEL.ENGINE requests it.
"""
