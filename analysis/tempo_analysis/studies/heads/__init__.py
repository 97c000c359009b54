"""What every attention head does, each score beside its chance and its null."""
