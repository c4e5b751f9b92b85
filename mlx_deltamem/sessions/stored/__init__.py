"""Session files of this package.

A session file is a prompt cache file of mlx-lm (`.safetensors`) that has a chat in it. Its cache entries are:

1. the keys and values of the backbone's layers, if they were saved;
2. the memory after the last turn, as in a prompt cache;
3. an `ArraysCache` with the arrays of the chat (`chat.cache_entries` describes them).

The texts and settings are JSON in the file's metadata, under `session`; `checksum` covers them and all arrays.
"""
