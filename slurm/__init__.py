"""Where stages run: here, or on a cluster."""
