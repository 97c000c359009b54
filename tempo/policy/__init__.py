"""What a step of decoding may do: rules over the slot table, in numpy."""
