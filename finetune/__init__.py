"""STAGE 3: fine-tune a pretrained model for text classification. `python -m finetune --help`"""
