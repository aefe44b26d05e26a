"""The student: where it comes from, what of it is trained, and its export."""
