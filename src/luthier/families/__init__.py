"""Facts about architectures, one file a family."""
