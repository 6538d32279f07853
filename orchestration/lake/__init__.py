"""The lake: opening it, locks, positions and shop-wide settings."""
