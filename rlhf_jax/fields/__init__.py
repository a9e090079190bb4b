"""The table of fields: what each can be, its default and its meaning."""
