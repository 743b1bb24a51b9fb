"""One module per on-disk layout: which parts a weight has, and how they are packed."""
