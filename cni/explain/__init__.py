"""What plugins' tables say, for people and for programs: texts, pages of the reference, JSON Schemas."""
