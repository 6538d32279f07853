"""The simulated shop, a file a part: its words, its world, how people behave, what dirt is planted, and the files.

Time is counted in microseconds since 1970 (UTC); people, devices, products and categories are numbers. Names and text
come in only where a file is written.
"""
