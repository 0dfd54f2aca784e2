"""From the channel layer to one connection: complete, in order, no faster than it reads."""
