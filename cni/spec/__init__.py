"""What the CNI specification defines: results, errors, versions, names, addresses, and its JSON as Go has it."""
