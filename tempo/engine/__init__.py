"""The decoding engine in torch: cached, packed, many sequences in one forward."""
