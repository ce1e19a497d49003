"""Detectron2's models behind `Segmenter`, and which keys Detectron2 takes.

Only this package and `engine.detectron2`, which trains, import Detectron2, and only where MODEL.ENGINE asks for it.
"""
