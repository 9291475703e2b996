"""STAGE 2: text -> token store -> pretrained model directory, for a decoder (causal) or an encoder (masked)."""
