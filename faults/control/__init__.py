"""Rows C1 to C24: what the control plane must survive."""
