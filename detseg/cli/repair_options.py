"""The words for the rules of repair, shared by `detseg repair` and the prepare commands."""

from __future__ import annotations

RULES_HELP = """rules and their defaults: holes=free (fill those in which no other object lies; all, off), crumbs=8
(pixels of the largest crumb that is smoothed away), fragments=keep (split, largest, off) but for pieces that lie
far=1.0 times the longer side of the largest piece away, which are split off, and for specks under speck_area=10 pixels
or speck_fraction=0.1 of the largest piece, min_area=10, duplicates=0.8 (IoU), nested=0.95 (part of a mask inside
another of its class), wrong_class=relabel (drop, off) in images whose kind is known by kind_field=FIELD and
kind_classes=VALUE:CLASS,VALUE:CLASS|CLASS or by one_class_per_image=yes. Every rule takes off; the word none switches
all off that are not named after it. docs/data.md explains them."""
