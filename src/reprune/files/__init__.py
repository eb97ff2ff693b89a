"""Files and folders: written whole, sealed, locked, read though anyone may have made them. Knows nothing of models."""
