"""The severities of problems, which the examination of a node and the validation of networks share."""

ERROR = "error"  # something does not work
WARNING = "warning"  # something may not work, or not for long
NOTE = "note"  # worth knowing
OK = "ok"  # examined, and as it should be
