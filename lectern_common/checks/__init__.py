"""Every check of a run before it starts, without torch, and the rules that the trainer shares."""
