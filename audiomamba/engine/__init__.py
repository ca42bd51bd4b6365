"""The network as one compiled loop over samples, for one CPU core and one stream at a time."""
