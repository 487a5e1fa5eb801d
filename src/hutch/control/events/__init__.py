"""Events: the log of what happened, who is told of it, and schedules. See docs/design/events.md."""
