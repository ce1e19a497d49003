"""Bottom-up systems: a U-Net says for every pixel what it is, and objects are made of the pixels.

network.py makes encoder and decoder; unet.py is what the systems share; binary.py, boundary.py, instance.py and
embedding.py are the systems, each with its heads, targets and decoder; decoding.py makes Predictions of labels.
"""
