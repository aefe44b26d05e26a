"""Chats as ids, with a mask of what the assistant wrote."""
