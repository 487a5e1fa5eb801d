"""What may be registered as a task definition, and what it becomes: AWS's rules, its defaults, hutch's additions."""
