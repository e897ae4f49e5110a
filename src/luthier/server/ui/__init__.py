"""The web page's interface under /api/, and the page itself."""
