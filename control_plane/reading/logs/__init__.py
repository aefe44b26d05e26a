"""A trainer's log: its end, the whole of it by byte ranges, and what is appended, as events."""
