"""From the lake to what is published: build, audit, publish, upkeep."""
