"""What an ablation changes at one token: measures, redundancy, offsets, and what they mean."""
