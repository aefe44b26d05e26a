"""The ranks of a teacher that is too large for one device: they share each forward."""
