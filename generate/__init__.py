"""STAGE 4: generate text with a language model: sampling, the decoder loop, the command line (`python -m generate`)."""
