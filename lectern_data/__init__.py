"""What `lectern data prepare` does: text, rows and chats as token shards."""
