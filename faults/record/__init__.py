"""Rows R1 to R7: what a record of a teacher must survive, while it is made and while it teaches."""
