"""Teachers: checked before a run, watched while it goes, and which secret goes to which."""
