"""Records: what each format costs in bytes and exactness, and how fast they are made and read."""
