"""Text in, dataset out: tokenise, pack, shuffle, shard. Every step streams and resumes."""
