"""The run specification: its sections, loading, what a resume may change, its docs page."""
