"""Small real runs for the trainer rows: started by forking, then inspected."""
