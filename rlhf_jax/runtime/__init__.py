"""The machinery that knows nothing of language models: files, work directories, hosts, progress, keys, errors."""
