"""From options to traces: request, batches, execution, recording, replay."""
