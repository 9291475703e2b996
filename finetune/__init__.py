"""STAGE 3: fine-tune a pretrained model for text classification. `python -m finetune --help`"""

import mini_llm  # noqa: F401  sets up OpenMP before torch is imported
