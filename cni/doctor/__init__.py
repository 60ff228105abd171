"""The examination of a node."""
