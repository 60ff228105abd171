"""The types of the CNI specification: results, errors, versions, names and addresses; and JSON as Go treats it."""
