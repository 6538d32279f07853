"""From a stream into the lake: `messages` says what becomes of a message, a source (`kafka`, `kinesis`, `folder`) takes them off,
`loader` closes batches and lands each with its positions in one transaction, `watch` tells how it goes."""
