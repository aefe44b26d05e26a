"""Records: a teacher's answers on disk, and reading them without the teacher."""
