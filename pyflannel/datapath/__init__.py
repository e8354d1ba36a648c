"""The packet path of the udp backend."""
