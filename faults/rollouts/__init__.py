"""Rows O1 to O8: what a run whose student writes its own rows must survive."""
