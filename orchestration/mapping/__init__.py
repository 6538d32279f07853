"""The mapping of a shop's data, and the raw tables it fills."""
