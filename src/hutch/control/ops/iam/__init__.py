"""Use cases of IAM."""
