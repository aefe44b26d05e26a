"""Stages around training, each run as a task in a process of its own."""
