"""The wire formats between teacher and student, and the pieces of a reply stream."""
