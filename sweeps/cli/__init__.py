"""The `isoloop` command."""
