"""Rollouts: rows of a step that the student writes, the teacher scores and the student learns."""
