"""From a source on disk or the hub to padded token batches: readers, prompts, tokenizers, batches, generated."""
