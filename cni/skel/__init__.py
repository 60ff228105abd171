"""The frame of a plugin."""
