"""Files and folders: writes them whole, seals and locks them, reads untrusted ones. Knows nothing of models."""
