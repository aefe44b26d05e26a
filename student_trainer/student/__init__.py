"""The student: where it comes from, which parameters are trained, and its export."""
