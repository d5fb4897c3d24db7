"""A sentence is answered about a video: chunk by chunk, of tracks, of streams."""
