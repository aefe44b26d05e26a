"""The gRPC side: validates requests, cuts replies into messages, starts and drains the server."""
