"""The cached, packed decoder, in torch."""
