"""Moving in: vectors that were paid for elsewhere become embeddings of this catalogue, once a sample has proved their model."""
