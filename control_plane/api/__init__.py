"""The REST interface: routes, bodies, errors, access checks, the application."""
