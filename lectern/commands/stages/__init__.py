"""Commands that run a stage: here in the foreground, or on a control plane as a task."""
