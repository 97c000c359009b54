"""What a bias on parallel members does: dose and response, beside a control."""
