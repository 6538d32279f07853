"""The feature catalogue, and the history of features by day."""
