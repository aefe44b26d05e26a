"""What a terminal shows: runs drawn live, tables, a teacher's status, time left."""
