"""SQL as text: names, values, and the functions that a mapping may use."""
