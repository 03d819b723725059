"""Token sources: files, data sets of the hub, the Pile, generated text, rows made from motifs."""
