"""The teacher's side: serving, the wire, a step through the service, a GPU."""
