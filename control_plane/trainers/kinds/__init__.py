"""What the reconcile loop looks after: runs with their trainers, tasks with their processes."""
