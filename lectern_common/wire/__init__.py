"""What crosses the wire: how it is laid out, and the pieces in which it travels."""
