"""What the weights of attention heads say by themselves; `tempo.models.head_weights` exports them."""
