"""Programs, files and locks, tracing, and rolling back on failure."""
