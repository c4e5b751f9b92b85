"""The HTTP interface of the server: OpenAI's and Anthropic's endpoints, and those of the memories."""
