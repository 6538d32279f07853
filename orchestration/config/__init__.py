"""Settings: paths and limits from the environment, and YAML configuration files."""
