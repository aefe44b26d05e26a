"""What is read from run folders and roots, and streamed."""
