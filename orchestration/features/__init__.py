"""What the published features are, and what they were."""
