"""What the weights of attention heads say by themselves; `tempo.plain.weights` exports them."""
