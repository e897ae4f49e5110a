"""Build objects from a RunConfig and run them."""
