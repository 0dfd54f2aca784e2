"""From the channel layer to one connection: complete, in order, and no faster than the browser reads."""
