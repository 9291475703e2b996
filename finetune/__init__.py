"""STAGE 3: text classification from a pretrained model. `python -m finetune --help`"""
