"""The R-CNN family: Detectron2's keys, parameter names and numbers, on torch and torchvision's operators.

Symbols used throughout: B images of a batch, N objects of an image, R anchors of an image, A anchors of a position, P
proposals of an image, M regions of a batch, D detections of an image, K classes, C channels, H and W the size of an
image or a feature map. Boxes are float32 XYXY, half-open, in pixels at network scale.
"""
