"""WebSockets to processes in containers."""
