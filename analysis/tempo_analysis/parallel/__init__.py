"""Questions about a run of parallel decoding, each with chance, null and interval."""
