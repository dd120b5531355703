"""l7lb beside HAProxy and nginx: the same work, in one run, in turn, on the same core.

``python -m benchmarks`` (or ``make bench``) prints a table of ratios and exits 1 where one is beyond its limit.
"""
