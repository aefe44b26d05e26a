"""Processes on this machine: services and trainers as children, and a look at torch."""
