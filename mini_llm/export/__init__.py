"""Export a trained model for other runtimes: write one GGUF file for llama.cpp and check that it is the same model.

architectures.py  supported families: what llama.cpp cannot represent, metadata, tensors under its names
vocabulary.py     convert the tokenizer to llama.cpp's vocabulary
write.py          export_gguf: quantize and write
encoders.py       llama.cpp's tokenization, reimplemented from the vocabulary in a GGUF file
llama_cpp.py      run llama.cpp through llama-cpp-python, if installed
check_text.py     compare token ids and greedy text of a file with ours
check.py          check_gguf: compare the tensors, ids and greedy text of a file with its model directory

python -m mini_llm export gguf runs/gpt
"""
