"""Documentation from the plugins' tables: texts for a terminal, pages of the reference, JSON Schemas."""
