"""What a shop's mapping says, and the raw tables that it fills."""
