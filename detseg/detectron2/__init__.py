"""Detectron2 as an engine: its models behind `Segmenter`, its DefaultTrainer around detseg's data and files.

The only folder that imports detectron2. Nothing imports it but by name, where MODEL.ENGINE says so (config/engines.py).
"""
