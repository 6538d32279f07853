"""From the lake to the published marts: build, audit, publish, maintain."""
