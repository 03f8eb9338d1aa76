"""Value principles: what they are, and how they are read from YAML files."""
