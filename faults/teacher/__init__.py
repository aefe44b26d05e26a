"""Rows T1 to T22: what a teacher server must survive."""
