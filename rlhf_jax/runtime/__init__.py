"""The machinery that knows nothing of language models: files, figures, work directories, hosts, progress, keys, errors."""
