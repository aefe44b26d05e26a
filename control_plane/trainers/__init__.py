"""Trainers as processes: which device each gets, starting, watching, stopping."""
