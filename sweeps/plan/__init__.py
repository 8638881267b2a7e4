"""Configuration to plan: axes, grid, resources, packing, summary. Nothing is started here."""
