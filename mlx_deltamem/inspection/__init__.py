"""Reports on adapters, models and chats. Each file has one subject: its facts, their table, and often the figure."""
