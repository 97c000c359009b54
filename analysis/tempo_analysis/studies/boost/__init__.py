"""Effects of a bias on parallel members, by dose, compared with a control."""
