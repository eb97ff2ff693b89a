"""What a run and a study have on record, and a study's cells brought together as rows; loads no PyTorch."""
