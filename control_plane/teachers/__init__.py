"""Teachers: start checks, monitoring, and which secret is sent to which teacher."""
