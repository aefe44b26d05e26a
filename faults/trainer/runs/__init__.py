"""Small real runs for these rows: started by forking, tried again and again, looked at."""
