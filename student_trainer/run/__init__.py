"""A run from spec to end: assembled, checked, trained, resumed."""
