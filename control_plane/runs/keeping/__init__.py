"""What keeps runs and their disk: sizes, pruning, backups of the database, rows from folders."""
