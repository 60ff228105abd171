"""The kernel's network side in Python words: namespaces, links, routes, sysctls, MAC addresses."""
