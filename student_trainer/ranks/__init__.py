"""The processes that train one run together: started, watched, and their sharded weights."""
