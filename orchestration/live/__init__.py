"""Live features: the models' own SQL, run on the rows of the customers that a stream has just touched."""
