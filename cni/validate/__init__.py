"""What is wrong with configurations, found before a container is waiting for them."""
