"""A server of named memories: the engine that generates replies, and the interfaces of other APIs to it."""
