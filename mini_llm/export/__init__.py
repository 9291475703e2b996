"""A trained model for other runtimes: one GGUF file for llama.cpp, and the proof that it is the same model.

architectures.py  what llama.cpp computes for each family: refusals, metadata, tensors under its names
vocabulary.py     the tokenizer as llama.cpp's vocabulary
write.py          export_gguf: quantise and write
spm.py            llama.cpp's tokenization, from the vocabulary in a GGUF file
llama_cpp.py      llama.cpp itself, where llama-cpp-python is installed
check.py          check_gguf: tensors, ids and greedy text of a file against its model directory

python -m mini_llm export gguf runs/gpt
"""
