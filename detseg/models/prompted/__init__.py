"""Objects of a first pass drawn anew by Segment Anything: regions become prompts, prompts masks, and gates decide.

objects --(prompts)--> points and boxes --(windows, sam)--> masks --(refine: gates, overlaps)--> objects
"""
