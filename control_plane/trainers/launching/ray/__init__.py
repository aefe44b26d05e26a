"""The backend of a Ray cluster: runs are its jobs."""
