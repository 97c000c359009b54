"""What does each attention head do? One role, one file; patterns only, no model."""
