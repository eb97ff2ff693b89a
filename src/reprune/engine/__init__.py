"""The loop that prunes and reconstructs window after window, and the ledger of what is done."""
