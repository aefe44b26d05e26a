"""Trainer processes: which device each gets; starting, watching and stopping them."""
