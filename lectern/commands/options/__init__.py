"""Options that a command has many of: of `lectern data prepare`, and of the teacher server."""
