"""The run folder, the status in it, and the processes that write it."""
