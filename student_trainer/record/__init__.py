"""Recording a teacher's answers, and the bytes of recorded rows."""
