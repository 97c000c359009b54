"""What a run leaves behind, and how it is read: numpy only, no torch and no model."""
