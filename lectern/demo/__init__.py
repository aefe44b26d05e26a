"""`lectern demo`: one teacher, four runs, real text."""
