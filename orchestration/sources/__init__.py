"""Where raw data comes from: files, object stores, databases, APIs, streams."""
