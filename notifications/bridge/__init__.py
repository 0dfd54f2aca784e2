"""The bridge from what is published on Redis to the groups of the channel layer."""
