"""What keeps runs and their disk: sizes, deletion, pruning, backups, rows made of folders."""
