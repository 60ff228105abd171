"""A library about this node: attachments, leftovers, namespaces, address pools, topology."""
