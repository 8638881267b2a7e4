"""The tables that laws are fitted to: run tables, tables of dense models, and sanity checks on both."""
