"""Looking at a data set: what is in it, what is wrong with it, and which settings suit it. Numbers only; report draws.

`gather` measures, `objects`, `contacts` and `intensities` say how; `numbers` makes the report of it, `advice` and the
`advise_*` what is suggested.
"""
