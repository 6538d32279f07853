"""Where things are, and files of settings."""
