"""SQL text: quoted names and values, and the functions a mapping may use."""
