"""Settings: declared once in schema.py, read by load.py. Never imports torch."""
