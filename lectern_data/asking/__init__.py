"""Asks a server with the OpenAI interface for answers to prompts: `lectern data generate`."""
