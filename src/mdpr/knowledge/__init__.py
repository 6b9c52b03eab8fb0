"""Five sentences per class: from a file, from a chat model, or both; kept, audited, shown."""
