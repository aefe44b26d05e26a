"""A run from its spec to its end: assembled, checked, trained, exported, resumed."""
