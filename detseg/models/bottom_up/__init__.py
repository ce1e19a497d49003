"""Bottom-up systems: a U-Net predicts maps for every pixel, and objects are formed from the pixels.

network.py builds encoder and decoder; unet.py is the common base; binary.py, boundary.py, instance.py and embedding.py
are the systems, each with its heads, targets and decoding; decoding.py makes Predictions from labels.
"""
