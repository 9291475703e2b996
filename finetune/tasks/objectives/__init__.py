"""Training losses other than cross-entropy, one file each: mini_llm.engine.loss.Objective."""
