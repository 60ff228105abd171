"""Find plugins and run them."""
