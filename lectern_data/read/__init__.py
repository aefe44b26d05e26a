"""What is read: files, rows, hub datasets, and every document found and hashed."""
