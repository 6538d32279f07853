"""Loading streams into the lake. A source (`kafka`, `kinesis`, `folder`) reads messages, `messages` turns each into a row or a dead letter,
`loader` lands each batch with its positions in one transaction, and `watch` reports progress."""
