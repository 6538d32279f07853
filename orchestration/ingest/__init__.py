"""From sources into the lake."""
