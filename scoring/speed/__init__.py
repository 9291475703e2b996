"""Latency and throughput of generation: a model here, or any OpenAI-compatible server, by the same ruler."""
