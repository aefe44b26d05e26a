"""Turns text, rows and chats into token shards: the work behind `lectern data prepare`."""
