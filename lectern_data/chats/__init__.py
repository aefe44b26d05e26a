"""Encodes chats as token ids, with a mask of what the assistant wrote."""
