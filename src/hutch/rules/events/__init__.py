"""Events: patterns, schedules, input transformation, and what a task's change says. Pure."""
