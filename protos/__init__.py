"""The wire contract, `lectern.v1`: teacher.proto, and the stubs that `make protos` generates."""
