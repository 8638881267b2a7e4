"""The sweep configuration: its schema, the YAML it is read from, and the presets."""
