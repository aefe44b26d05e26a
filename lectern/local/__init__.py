"""Processes on this machine: servers and trainers as children, the torch there is."""
