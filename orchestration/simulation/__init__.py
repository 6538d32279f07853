"""The simulated shop: its names (`words`), people and products (`world`), events (`behaviour`), planted errors (`dirt`), and files.

Times are microseconds since 1970 (UTC); people, devices, products and categories are numbers. They become names and text only when
a file is written.
"""
