"""The backend of a site's Slurm: runs are its jobs."""
