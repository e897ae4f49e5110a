"""Grade answers on rows that were not trained on."""
