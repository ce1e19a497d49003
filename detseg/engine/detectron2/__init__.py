"""Training by Detectron2's own trainer, with detseg's data, evaluation, files and hooks."""
