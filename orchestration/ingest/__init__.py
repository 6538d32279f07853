"""Loading data from files, databases, APIs and streams into the lake."""
