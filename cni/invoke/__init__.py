"""Finding and running plugins."""
