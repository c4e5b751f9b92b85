"""What is to be known of adapters, models with an adapter, and chats: measured here, shown by `tables` and `plots`."""
