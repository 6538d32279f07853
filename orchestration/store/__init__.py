"""The feature store: the newest feature vectors by key, and Feast's view of them."""
