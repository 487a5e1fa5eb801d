"""IAM policies: parsing, matching, deciding. Pure."""
