"""The gRPC side: requests validated, replies cut into messages, the server's life."""
