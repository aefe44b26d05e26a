"""The run specification: its sections, how it is read, what a resume may change, its docs page."""
