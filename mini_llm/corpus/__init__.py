"""Documents in, token files out.

    config.py       CorpusConfig and SourceConfig: what to read, how to split it
    documents.py    iter_documents: the distinct documents of the training or validation part, each of bounded size
    report.py       ReadReport: what was read, dropped and repaired
    sources.py      one source -> documents: the built-in corpus, text files, folders, globs, tables, datasets
    tables.py       iter_rows: CSV, TSV, JSON, JSONL, Parquet and Hugging Face datasets, row by row
    json_rows.py    JSON and JSONL: lines, lists, and objects that hold rows or columns
    encoding.py     suggest_encoding: a guess at the encoding of bytes that are not UTF-8, for messages
    separators.py   documents inside one text file
    text.py         bytes -> text: compression, byte order marks, UTF-16, invalid UTF-8, binary files
    paths.py        whether a path names a file, a folder, a glob or a dataset
    hub.py          Hugging Face datasets, by name or saved to disk
    stdlib.py       the built-in corpus: the standard library of the running Python
    hash_set.py     HashSet: an exact set of document hashes at 16 bytes each
    fingerprint.py  corpus_fingerprint: one hash of a corpus's content
    shard_writer.py ShardWriter: writes token shards that survive a kill
    token_store.py  TokenStore: reads them, memory-mapped
    build.py        build_store: a corpus and a tokenizer -> token stores, reused when nothing changed

Nothing here imports torch or a stage. `datasets` and `pyarrow` are imported inside the functions that use them.
"""
