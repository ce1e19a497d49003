"""Objects of a first pass, segmented again by Segment Anything: regions become prompts, prompts masks, gates select.

objects --(prompts)--> points and boxes --(windows, sam)--> masks --(refine: gates, overlaps)--> objects
"""
