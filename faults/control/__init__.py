"""Rows C1 to C28: what the control plane must survive."""
