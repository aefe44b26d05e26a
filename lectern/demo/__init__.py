"""`lectern demo`: one teacher, three students, real text."""
