"""The reference pages, each written from the source that it describes."""
