"""Checks a run before it starts, without torch; holds the rules that the trainer shares."""
