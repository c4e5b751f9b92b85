"""A chat in other forms: a dict for JSON (`exported`, `reply_rest`), Markdown, and HTML for notebooks."""
