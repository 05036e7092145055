"""Tables of stored results, in Markdown, one file a field."""
