"""finegrain: from a shop's raw events to tested, point-in-time-correct personalization features."""

__version__ = "0.1.0"
