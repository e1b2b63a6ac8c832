"""The ingester: writes outcomes to the store in batches; spools to disk while the store is unavailable."""
