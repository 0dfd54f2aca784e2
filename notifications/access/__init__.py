"""Who a connection is, what it may read, and how that ends."""
