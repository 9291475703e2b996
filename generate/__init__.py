"""STAGE 4: text from a causal language model: sampling, the decoder loop, the command line (`python -m generate`)."""
