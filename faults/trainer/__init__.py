"""Rows S1 to S14: what a trainer must survive."""
