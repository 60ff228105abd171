"""Checks of network configurations, before a container waits for them."""
