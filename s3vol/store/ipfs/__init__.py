"""The IPFS store: objects as content-addressed blocks, one published head per writer, and merges instead of locks."""
