"""The same measurements of what a user might use instead, each with its best safe settings."""
