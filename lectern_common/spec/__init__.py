"""A run's specification: its sections, reading it, what a resume may change, its page."""
