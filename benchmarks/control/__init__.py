"""The control plane: many runs, long charts, many streams, resumes, idling."""
