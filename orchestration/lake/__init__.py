"""The lake, and what is kept in it beside rows."""
